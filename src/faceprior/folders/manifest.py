"""The manifest of a run over files: a line for every input that is finished, from which a run goes on."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from faceprior.errors import OptionError, OutputError

MANIFEST_NAME = "restore.jsonl"

Record = dict[str, Any]


class Manifest:
    """`restore.jsonl`, open for appending.

    The first line says how the run was made: {"settings": {...}}. Every further one is the record of an input. A line
    is written at once, so that a killed process loses at most the one that it was writing, and the input of that is
    done again.

    Args:
        folder: the output folder, which exists.
        settings: all that decides the results, as JSON has it.
        resume: go on from the manifest that is there, if there is one, rather than begin a new one. Only records
            with the status "done" are kept.
        is_valid: says of a record that would be kept whether its input and outputs are still as they were.

    Attributes:
        names: of the inputs that were done when it was opened: what their results are called.

    Raises:
        OptionError: the manifest that is there was made with other settings.
        OutputError: it cannot be written, or is not a manifest.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        *,
        resume: bool = False,
        is_valid: Callable[[Record], bool] = lambda _record: True,
    ) -> None:
        self.path = folder / MANIFEST_NAME
        self.names = dict[str, str]()
        self._places = dict[str, int]()  # input → where its line begins: a million records need not be in memory
        header = _line({"settings": settings})
        if resume and self.path.is_file() and self.path.stat().st_size > 0:
            self._rewrite(header, is_valid)
        try:
            self._file = self.path.open("r+b" if self._places else "w+b", buffering=0)
            self._file.seek(0, os.SEEK_END)
            self._reader = self.path.open("rb")
        except OSError as error:
            raise OutputError(
                f"{folder}: cannot be written to ({error.strerror}); choose another --output"
            ) from error
        if not self._places:
            self._write(header)

    def close(self) -> None:
        """Close it, and see to it that it outlives a power cut."""
        with contextlib.suppress(OSError):  # what cannot be synchronised, /dev/null for one
            os.fsync(self._file.fileno())
        self._file.close()
        self._reader.close()

    def find(self, path: Path) -> Record | None:
        """Return the record that an input had when the manifest was opened."""
        place = self._places.get(str(path))
        if place is None:
            return None
        self._reader.seek(place)
        record: Record = json.loads(self._reader.readline())
        return record

    def append(self, record: Record) -> None:
        """Write the record of an input.

        Raises:
            OutputError: it cannot be written.
        """
        self._write(_line(record))

    def _write(self, line: bytes) -> None:
        try:
            while line:  # a disk that fills takes a part first
                line = line[self._file.write(line) :]
        except OSError as error:
            raise OutputError(
                f"{self.path}: cannot be written ({error.strerror}); choose another --output"
            ) from error

    def _rewrite(self, header: bytes, is_valid: Callable[[Record], bool]) -> None:
        """Drop from the manifest that is there what failed, is damaged or no longer true."""
        partial = self.path.with_name(f".faceprior-{secrets.token_hex(8)}.partial")
        try:
            try:
                with self.path.open("rb") as old, partial.open("xb") as new:
                    self._check(old.readline(), header)
                    place = new.write(header)
                    for line, record in _records(old):
                        if record["input"] not in self._places and is_valid(record):
                            self._places[record["input"]] = place
                            self.names[record["input"]] = record["name"]
                            place += new.write(line)
                partial.replace(self.path)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputError(f"{self.path}: cannot be resumed ({reason}); leave out --resume") from error

    def _check(self, first: bytes, header: bytes) -> None:
        then, now = _parsed(first), json.loads(header)
        if then is None and not first.endswith(b"\n"):
            return  # killed while it was begun: nothing was done
        if then is None or not isinstance(then.get("settings"), dict):
            raise OutputError(
                f"{self.path}: is not a manifest that can be resumed; leave out --resume to start again"
            )
        differences = list(_differences(then["settings"], now["settings"]))
        if differences:
            raise OptionError(
                f"{self.path}: was made with {'; '.join(differences)}; give the same options to resume,"
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


def _line(record: Mapping[str, Any]) -> bytes:
    # file names need not be UTF-8; what is not becomes JSON's own \udcXX
    return (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _records(lines: Iterator[bytes]) -> Iterator[tuple[bytes, Record]]:
    for line in lines:
        record = _parsed(line) if line.endswith(b"\n") else None
        if record is None or record.get("status") != "done":
            continue
        if isinstance(record.get("input"), str) and isinstance(record.get("name"), str):
            yield line, record


def _parsed(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
