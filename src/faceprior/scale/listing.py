"""A listing in parts: what is to be restored and what its results are called, for any number of photographs.

Ten million names do not fit into memory as objects, so they are spooled to a file while they are listed; what stays
is a number for each name, by which those that meet are found.
"""

from __future__ import annotations

import io
import json
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import parquet

from faceprior.errors import OutputError
from faceprior.folders.inputs import Input, folded, output_names
from faceprior.storage import Place, Url, place, reason

_ROWS = 50_000  # that are in memory as objects
_SCHEMA = pa.schema(
    [
        ("input", pa.string()),
        ("name", pa.string()),
        ("bytes", pa.int64()),
        ("modified_ns", pa.int64()),
        ("problem", pa.string()),
    ]
)


@dataclass(frozen=True)
class Photograph:
    """A line of the listing.

    Attributes:
        input: path or URL of the file, as the user would name it.
        name: what its results are called, below the output folder and without ending.
        stamp: of the file (`storage.stamp`), where listing it has told.
        problem: why nothing can be read there, or None.
    """

    input: str
    name: str
    stamp: dict[str, int] | None = None
    problem: str | None = None

    @property
    def given(self) -> Input:
        """The same as an input of a restoration."""
        return Input(place(self.input), problem=self.problem, stamp=self.stamp)


@dataclass(frozen=True)
class Listing:
    """Photographs in parts, in a folder of Parquet files.

    Attributes:
        folder: where the parts lie.
        parts: how many.
        photographs: how many, in all parts.
        settings: all that decides the results.
    """

    folder: Url
    parts: int
    photographs: int
    settings: dict[str, Any]

    def read(self, part: int) -> list[Photograph]:
        """Return the photographs of a part, in order; raises OutputError."""
        url = self.folder / part_name(part, "parquet")
        try:
            rows = parquet.read_table(io.BytesIO(url.read()), schema=_SCHEMA).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise OutputError(f"{url}: is damaged or gone ({error}); begin anew in another --output") from error
        return [
            Photograph(
                row["input"],
                row["name"],
                None if row["bytes"] is None else {"bytes": row["bytes"], "modified_ns": row["modified_ns"]},
                row["problem"],
            )
            for row in rows
        ]


def part_name(part: int, ending: str) -> str:
    """What the file of a part is called."""
    return f"{part:05d}.{ending}"


def read_listing(folder: Url) -> Listing | None:
    """Return the listing that is complete in a folder, or None; raises OutputError."""
    try:
        about = json.loads((folder / "about.json").read())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise OutputError(f"{folder}: cannot be read ({error}); check the access to it") from error
    return Listing(folder, about["parts"], about["photographs"], about["settings"])


def write_listing(
    inputs: Iterable[Input],
    folder: Url,
    output: Place,
    suffixes: Sequence[str],
    parts: int,
    settings: dict[str, Any],
) -> Listing:
    """List inputs once and for all.

    The names of the results are those that `output_names` gives. What is named twice is listed once.

    Args:
        inputs: any number of them.
        folder: where the parts are written.
        output: folder of the results.
        suffixes: what is appended to a name to make the stems of an input's results, "" first.
        parts: how many, if there are so many inputs.
        settings: all that decides the results.

    Raises:
        OutputError: it cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="faceprior-") as spool:
        path = Path(spool, "listing.parquet")
        places, stems = _spool(inputs, path, suffixes)
        twice = _marked(places, _repeated(places))
        meeting, renamed = _renamed(path, stems, output, suffixes)
        total = written = 0
        try:
            count = len(np.unique(places))
            most = max(1, min(parts, count))
            ends = [(number + 1) * count // most for number in range(most)]
            for table in _cut(_finished(path, twice, meeting, renamed), ends):
                (folder / part_name(written, "parquet")).write(_encoded(table))
                total, written = total + len(table), written + 1
            about = {"parts": written, "photographs": total, "settings": settings}
            (folder / "about.json").write(json.dumps(about, ensure_ascii=False).encode())  # last: now it is complete
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written ({reason(error)}); choose another --output") from error
    return Listing(folder, written, total, settings)


def _spool(
    inputs: Iterable[Input], path: Path, suffixes: Sequence[str]
) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """Write all inputs to a file.

    Returns:
        Hashes of the inputs, and of the stems of all their results, an array for each suffix.
    """
    places, stems, everything = array("q"), [array("q") for _ in suffixes], iter(inputs)
    with parquet.ParquetWriter(path, _SCHEMA) as writer:
        while batch := list(islice(everything, _ROWS)):
            own = [str(given.path) for given in batch]
            names = [_own_name(given) for given in batch]
            stamps = [given.stamp or {} for given in batch]
            bytes_, changed = ([stamp.get(key) for stamp in stamps] for key in ("bytes", "modified_ns"))
            problems = [given.problem for given in batch]
            writer.write_table(pa.table([own, names, bytes_, changed, problems], schema=_SCHEMA))
            places.extend(map(hash, own))
            for hashes, suffix in zip(stems, suffixes, strict=True):
                hashes.extend(hash(folded(name) + suffix) for name in names)
    return np.frombuffer(places, np.int64), [np.frombuffer(hashes, np.int64) for hashes in stems]


def _own_name(given: Input) -> str:
    return f"{given.folder}/{given.path.stem}" if given.folder else given.path.stem


def _repeated(hashes: NDArray[np.int64]) -> NDArray[np.int64]:
    ordered = np.sort(hashes)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


def _marked(hashes: NDArray[np.int64], some: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.isin(hashes, some)


def _renamed(
    path: Path, stems: list[NDArray[np.int64]], output: Place, suffixes: Sequence[str]
) -> tuple[NDArray[np.bool_], dict[str, str]]:
    """Which inputs' results would meet those of others, and the names that those inputs get."""
    taken = np.concatenate(stems)
    wanted = _repeated(taken)
    while True:
        meeting = np.any([_marked(own, wanted) for own in stems], axis=0)
        rows = [row for table in _spooled(path, meeting) for row in table.to_pylist()]
        given = {row["input"]: Input(place(row["input"]), row["name"].rpartition("/")[0]) for row in rows}
        names = output_names(list(given.values()), output, suffixes)
        own = {hash(folded(_own_name(one)) + suffix) for one in given.values() for suffix in suffixes}
        new = {hash(folded(name) + suffix) for name in names for suffix in suffixes} - own
        others = np.intersect1d(taken, np.fromiter(new, np.int64, len(new)))
        if not len(others):
            return meeting, dict(zip(given, names, strict=True))
        wanted = np.union1d(wanted, others)  # a new name meets one that met none before


def _finished(
    path: Path, twice: NDArray[np.bool_], meeting: NDArray[np.bool_], renamed: Mapping[str, str]
) -> Iterator[pa.Table]:
    """All inputs once, with the names of their results."""
    seen, start = set[str](), 0
    for table in _spooled(path):
        rows = slice(start, start + len(table))
        start = rows.stop
        named = meeting[rows]
        if named.any():
            new = [renamed[own] for own in table["input"].filter(named).to_pylist()]
            names = pc.replace_with_mask(table["name"], pa.array(named), pa.array(new, pa.string()))
            table = table.set_column(1, _SCHEMA.field("name"), names)  # noqa: PLW2901
        kept = ~twice[rows]
        for row in np.flatnonzero(~kept):
            text = table["input"][row].as_py()
            kept[row] = text not in seen
            seen.add(text)
        yield table.filter(pa.array(kept))


def _spooled(path: Path, some: NDArray[np.bool_] | None = None) -> Iterator[pa.Table]:
    start = 0
    with parquet.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            rows = slice(start, start + len(table))
            start = rows.stop
            if some is None or some[rows].any():
                yield table if some is None else table.filter(pa.array(some[rows]))


def _cut(tables: Iterable[pa.Table], ends: Sequence[int]) -> Iterator[pa.Table]:
    """Cut a long table into parts that end at some rows; the last one takes the rest."""
    held, start, left = _SCHEMA.empty_table(), 0, list(ends)
    for table in tables:
        held = pa.concat_tables([held, table])
        while len(left) > 1 and len(held) >= left[0] - start:
            yield held.slice(0, left[0] - start)
            held = held.slice(left[0] - start)
            start = left.pop(0)
    if len(held):
        yield held


def _encoded(table: pa.Table) -> bytes:
    with io.BytesIO() as file:
        parquet.write_table(table, file, compression="zstd")
        return file.getvalue()
