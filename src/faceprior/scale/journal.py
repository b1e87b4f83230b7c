"""What a run on a cluster has done and tried, in its storage: a record for each part, and a journal of the open ones.

Only the driver writes. A piece of the journal says which photographs are about to be tried, before they are, and
holds the records of those that are finished; when a part is complete its pieces become one record. So a run that was
lost is resumed by listing two folders and reading the pieces of the parts that were open.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from faceprior.errors import OptionError, OutputError
from faceprior.folders.manifest import Record, line_of
from faceprior.scale.listing import Photograph, part_name
from faceprior.storage import Url, reason

_WHOLE, _AGAIN = ".jsonl", "-again.jsonl"  # endings of a part's record


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
        with self._reached():
            self._driver = self._last_driver() + 1
            if not (self._drivers / f"{self._driver:06d}").create(b""):
                raise OptionError(f"{folder}: another command works on this run; let it end, or stop it")
            names = self._records.names()
            for piece in self._pieces.names():
                self._own[_part_of(piece)].append(piece)
        self.done = {_part_of(name) for name in names if not name.endswith(_AGAIN)}
        self._incomplete = {_part_of(name) for name in names} - self.done

    def open(self, part: int, photographs: Sequence[Photograph]) -> tuple[dict[str, Record], Counter[str]]:
        """Return the records of what is finished of a part, by input, and how often others were tried."""
        finished, tries = dict[str, Record](), Counter[str]()
        inputs = {photograph.input for photograph in photographs}
        pieces = [self._records / part_name(part, _AGAIN)] if part in self._incomplete else []
        pieces += [self._pieces / name for name in self._own[part]]
        with self._reached():
            for line in (json.loads(line) for url in pieces for line in url.read().splitlines()):
                for name in line.get("tried", ()):
                    tries[name] += 1
                for name in line.get("untried", ()):  # the run was stopped while it was under way
                    tries[name] -= 1
                if line.get("input") in inputs:
                    tries.pop(line["input"], None)
                    if not line.get("again"):
                        finished[line["input"]] = line
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
            name = part_name(part, f"-{self._driver:06d}-{self._number:08d}.jsonl")
            with self._reached():
                (self._pieces / name).write(b"".join(map(line_of, self._lines[part])))
            self._own[part].append(name)
            del self._lines[part]

    def complete(self, part: int, records: Collection[Record]) -> None:
        """Write the record of a part, all of it or nothing, and remove its journal.

        Raises OutputError, or OptionError where another driver has taken over the run since.
        """
        incomplete = any(record.get("again") for record in records)
        with self._reached():
            if self._last_driver() != self._driver:
                raise OptionError(f"{self._drivers.parent}: another command has taken over this run; this one ends")
            lines = [line_of({"settings": self._settings}), *map(line_of, records)]
            (self._records / part_name(part, _AGAIN if incomplete else _WHOLE)).write(b"".join(lines))
            if part in self._incomplete and not incomplete:
                (self._records / part_name(part, _AGAIN)).remove()
            self._lines.pop(part, None)
            for name in self._own.pop(part, ()):
                (self._pieces / name).remove()

    def tidy(self) -> None:
        """Remove what a driver that was lost left of parts that are done; raises OutputError."""
        with self._reached():
            for part in self.done.intersection(self._own):
                for name in self._own.pop(part):
                    (self._pieces / name).remove()

    def _last_driver(self) -> int:
        return int(max(self._drivers.names(), default=0))

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = self._records.parent
            why = f"cannot be read or written ({reason(error)})"
            raise OutputError(f"{where}: {why}; --resume goes on from here") from error


def _part_of(name: str) -> int:
    return int(name[:5])
