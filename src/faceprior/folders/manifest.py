"""The manifest of an output folder: a line for every input that is finished, whichever run finished it."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from faceprior.errors import OptionError, OutputError
from faceprior.images import replaced
from faceprior.storage import Place, Url, reason, write

MANIFEST_NAME = "restore.jsonl"

Record = dict[str, Any]

_PUBLISHED_EVERY = 30.0  # seconds, and more where it takes more than a twentieth of them


class Manifest:
    """`restore.jsonl`, open for appending.

    A line {"settings": {...}} says how those that follow were made, every other one is the record of an input. A run
    adds to what earlier ones wrote: lines of inputs that it does again are dropped when it begins, so that an input
    has one line. A line is written at once, so that a killed process loses at most the one that it was writing, and
    the input of that is done again. At a URL, where nothing can be appended, it is put anew every half minute; then a
    killed process loses so much.

    Args:
        folder: the output folder, which exists.
        settings: all that decides the results, as JSON has it.
        inputs: of this run, as their records name them.
        resume: leave out what an earlier run with these settings has done.
        is_valid: says of a record that would be resumed whether its input and outputs are still as they were.

    Attributes:
        names: of the inputs that have a line: what their results are called.

    Raises:
        OptionError: the last run into this folder, which is to be resumed, was made with other settings.
        OutputError: it cannot be written, or is not a manifest.
    """

    def __init__(
        self,
        folder: Place,
        settings: Mapping[str, Any],
        inputs: Collection[str] = (),
        *,
        resume: bool = False,
        is_valid: Callable[[Record], bool] = lambda _record: True,
    ) -> None:
        self._place: Place = folder / MANIFEST_NAME  # as the user knows it
        self._published: Url | None = None
        self._publish_at = 0.0
        if isinstance(folder, Url):
            self._spool = tempfile.TemporaryDirectory(prefix="faceprior-")
            self._published, folder = folder / MANIFEST_NAME, Path(self._spool.name)
        self.path = folder / MANIFEST_NAME
        self._fetch()
        self.names = dict[str, str]()
        self._places = dict[str, int]()  # input → where its line begins: a million records need not be in memory
        self._inputs, self._resume, self._is_valid = inputs, resume, is_valid
        header = line_of({"settings": settings})
        last = self._rewrite(header) if self.path.is_file() and self.path.stat().st_size > 0 else None
        with self._reached("written"):
            self._file = self.path.open("r+b" if last is not None else "w+b", buffering=0)
            self._file.seek(0, os.SEEK_END)
            self._reader = self.path.open("rb")
        if last != header:
            self._write(header)

    def close(self) -> None:
        """Close it, and see to it that it outlives a power cut."""
        with suppress(OSError):  # what cannot be synchronised, /dev/null for one
            os.fsync(self._file.fileno())
        self._file.close()
        self._reader.close()
        if self._published is not None:
            self._publish(self._published)
            self._spool.cleanup()

    def find(self, path: Place) -> Record | None:
        """Return the record of an input that is resumed."""
        place = self._places.get(str(path))
        if place is None:
            return None
        self._reader.seek(place)
        record: Record = json.loads(self._reader.readline())
        return record

    def append(self, record: Record) -> None:
        """Write the record of an input; raises OutputError."""
        self._write(line_of(record))
        if self._published is not None and time.monotonic() >= self._publish_at:
            self._publish(self._published)

    def _fetch(self) -> None:
        if self._published is None:
            return
        try:
            self.path.write_bytes(self._published.read())
        except FileNotFoundError:
            pass
        except OSError as error:
            raise OutputError(
                f"{self._published}: cannot be read ({reason(error)}); check the access to it"
            ) from error
        self._publish_at = time.monotonic() + _PUBLISHED_EVERY

    def _publish(self, url: Url) -> None:
        started = time.monotonic()
        write(url, self.path.read_bytes())
        now = time.monotonic()
        self._publish_at = now + max(_PUBLISHED_EVERY, 20 * (now - started))

    def _write(self, line: bytes) -> None:
        with self._reached("written"):
            while line:  # a disk that fills takes a part first
                line = line[self._file.write(line) :]

    def _rewrite(self, header: bytes) -> bytes | None:
        """Drop from the manifest that is there what is done again; return the settings that its last lines have."""
        with (
            self._reached("added to"),
            replaced(self.path) as partial,
            self.path.open("rb") as old,
            partial.open("xb") as new,
        ):
            last = self._last_settings(old)
            if self._resume and last is not None:
                check_settings(self._place, last["settings"], json.loads(header)["settings"])
            old.seek(0)
            return self._keep(old, new, header)

    @contextmanager
    def _reached(self, how: str) -> Iterator[None]:
        try:
            yield
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"{self._place}: cannot be {how} ({reason(error)}); choose another --output") from error

    def _keep(self, old: IO[bytes], new: IO[bytes], header: bytes) -> bytes | None:
        settings, written, place = b"", None, 0
        for line, record in _records(old):
            if "settings" in record:
                settings = line
                continue
            name = record["input"]
            if name in self._inputs:
                resumed = self._resume and settings == header and record.get("status") == "done"
                if name in self._places or not (resumed and self._is_valid(record)):
                    continue
            if settings != written:
                place += new.write(settings)
                written = settings
            if name in self._inputs:
                self._places[name] = place
            if isinstance(record.get("name"), str):
                self.names[name] = record["name"]
            place += new.write(line)
        return written

    def _last_settings(self, old: IO[bytes]) -> Record | None:
        first = old.readline()
        last = _parsed(first)
        if last is None and not first.endswith(b"\n"):
            return None  # killed while it was begun: nothing was done
        if last is None or not isinstance(last.get("settings"), dict):
            raise OutputError(f"{self._place}: is no manifest of faceprior; move it away, or choose another --output")
        for _, record in _records(old):
            if "settings" in record:
                last = record
        return last


def check_settings(where: Place, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to resume a run at a place that was made with other settings; raises OptionError."""
    differences = list(_differences(then, now))
    if differences:
        raise OptionError(
            f"{where}: was made with {'; '.join(differences)}; give the same options to resume,"
            " or leave out --resume to start again"
        )


def _differences(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name in dict.fromkeys((*then, *now)):
        before, after = then.get(name), now.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, f"{prefix}{name}.")
        elif before != after:
            yield f"{prefix}{name} {_text(before)}, not {_text(after)}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def line_of(record: Mapping[str, Any]) -> bytes:
    """Return a record as a line of JSON."""
    # file names need not be UTF-8; what is not becomes JSON's own \udcXX
    return (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _records(lines: IO[bytes]) -> Iterator[tuple[bytes, Record]]:
    """The whole lines that are records of inputs or settings; damaged ones are passed over."""
    for line in lines:
        record = _parsed(line) if line.endswith(b"\n") else None
        if record is not None and (isinstance(record.get("input"), str) or isinstance(record.get("settings"), dict)):
            yield line, record


def _parsed(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
