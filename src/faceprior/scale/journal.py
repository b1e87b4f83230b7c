"""What a run on a cluster has done and tried, in its storage: a record for each part, and a journal of the open ones.

Only the driver writes. A piece of the journal says which photographs are about to be tried, before they are, and
holds the records of those that are finished; when a part is complete its pieces become one record. So a run that was
lost is resumed by listing two folders and reading the pieces of the parts that were open.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from faceprior.errors import OptionError, OutputError
from faceprior.folders.manifest import Record, line_of
from faceprior.scale.listing import Photograph, part_name
from faceprior.storage import Url, reason


class Journal:
    """The state of a run, below a folder.

    Args:
        folder: of the run.
        settings: all that decides the results, for the first line of each record.

    Attributes:
        done: the parts that have a record in which nothing is left to be tried again.

    Raises:
        OutputError: it cannot be written or read.
        OptionError: at the same moment another driver took the run.
    """

    def __init__(self, folder: Url, settings: Mapping[str, Any]) -> None:
        self._records, self._pieces, self._drivers = folder / "records", folder / "journal", folder / "drivers"
        self._settings = settings
        self._lines = defaultdict[int, list[dict[str, Any]]](list)  # that are not yet written, by part
        self._own = defaultdict[int, list[str]](list)  # pieces of the open parts, by part
        self._number = 0
        try:
            self._driver = _number_of(self._drivers.names()) + 1
            if not (self._drivers / f"{self._driver:06d}").create(b""):
                raise OptionError(f"{folder}: another command works on this run; let it end, or stop it")
            names = self._records.names()
            for piece in self._pieces.names():
                self._own[int(piece.partition("-")[0])].append(piece)
        except OSError as error:
            raise self._trouble(error) from error
        again = {int(name.partition("-")[0]) for name in names if _again(name)}
        self.done = {int(name.partition(".")[0]) for name in names if not _again(name)}
        self._incomplete = again - self.done

    def open(self, part: int, photographs: Sequence[Photograph]) -> tuple[dict[str, Record], Counter[str]]:
        """Return what is known of a part that is not done.

        Args:
            part: its number.
            photographs: all that are in it.

        Returns:
            The records of what is finished, by input, and how often others were tried and not finished.

        Raises:
            OutputError: it cannot be read.
        """
        finished, tries = dict[str, Record](), Counter[str]()
        names = [self._record_name(part, incomplete=True)] if part in self._incomplete else []
        inputs = {photograph.input for photograph in photographs}
        try:
            pieces = [self._records / name for name in names] + [self._pieces / name for name in self._own[part]]
            for line in (line for url in pieces for line in _parsed(url.read())):
                for name in line.get("tried", ()):
                    tries[name] += 1
                for name in line.get("untried", ()):  # the run was stopped while it was under way
                    tries[name] -= 1
                if line.get("input") in inputs:
                    tries.pop(line["input"], None)
                    if not line.get("again"):
                        finished[line["input"]] = line
        except OSError as error:
            raise self._trouble(error) from error
        return finished, tries

    def tried(self, part: int, inputs: Iterable[str]) -> None:
        """Note that photographs are about to be tried; `flush` before they are."""
        self._lines[part].append({"tried": list(inputs)})

    def untried(self, part: int, inputs: Iterable[str]) -> None:
        """Note that the run is stopped before it is known what became of photographs."""
        self._lines[part].append({"untried": list(inputs)})

    def finished(self, part: int, record: Record) -> None:
        """Note what became of a photograph."""
        self._lines[part].append(record)

    def flush(self) -> None:
        """Write what is noted; raises OutputError."""
        for part in sorted(self._lines):
            self._number += 1
            name = f"{part:05d}-{self._driver:06d}-{self._number:08d}.jsonl"
            try:
                (self._pieces / name).write(b"".join(map(line_of, self._lines[part])))
            except OSError as error:
                raise self._trouble(error) from error
            self._own[part].append(name)
            del self._lines[part]

    def complete(self, part: int, records: Collection[Record]) -> None:
        """Write the record of a part, all of it or nothing, and remove its journal.

        Raises:
            OutputError: it cannot be written.
            OptionError: another driver has taken over the run since.
        """
        incomplete = any(record.get("again") for record in records)
        try:
            if _number_of(self._drivers.names()) != self._driver:
                raise OptionError(f"{self._drivers.parent}: another command has taken over this run; this one ends")
            lines = [line_of({"settings": self._settings}), *map(line_of, records)]
            (self._records / self._record_name(part, incomplete=incomplete)).write(b"".join(lines))
            if part in self._incomplete and not incomplete:
                (self._records / self._record_name(part, incomplete=True)).remove()
            self._lines.pop(part, None)
            for name in self._own.pop(part, ()):
                (self._pieces / name).remove()
        except OSError as error:
            raise self._trouble(error) from error

    def tidy(self) -> None:
        """Remove what a driver that was lost left of parts that are done; raises OutputError."""
        try:
            for part in self.done.intersection(self._own):
                for name in self._own.pop(part):
                    (self._pieces / name).remove()
        except OSError as error:
            raise self._trouble(error) from error

    def _record_name(self, part: int, *, incomplete: bool) -> str:
        return part_name(part, "jsonl") if not incomplete else f"{part:05d}-again.jsonl"

    def _trouble(self, error: OSError) -> OutputError:
        where = self._records.parent
        return OutputError(f"{where}: cannot be read or written ({reason(error)}); --resume goes on from here")


def _again(name: str) -> bool:
    return name.endswith("-again.jsonl")


def _number_of(drivers: Sequence[str]) -> int:
    return int(drivers[-1]) if drivers else 0


def _parsed(content: bytes) -> Iterator[dict[str, Any]]:
    for line in content.splitlines():
        yield json.loads(line)
