"""A listing in parts: what is to be restored and what its results are called, for any number of photographs.

Ten million names do not fit into memory as objects, so they are spooled to a file while they are listed; what stays
is a number for each name, by which those that meet are found.
"""

from __future__ import annotations

import io
import json
import tempfile
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import parquet

from faceprior.errors import OutputError
from faceprior.folders.inputs import Files, Input, Unlisted, folded, output_names
from faceprior.storage import Place, Url, place, reason

_ROWS = 50_000  # that are in memory as objects
_WRITES = 8  # of parts at once, for a store takes its time
_SPOOLED = pa.ipc.IpcWriteOptions(compression="lz4")
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
    inputs: Iterable[Input | Files],
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
        OutputError: it cannot be written, or an input cannot be listed to its end: a listing is complete or there is
            none.
    """
    with tempfile.TemporaryDirectory(prefix="faceprior-") as spool:
        path = Path(spool, "listing.arrow")
        places, stems = _spool(inputs, path, suffixes)
        repeated, count = _repeated(places)
        meeting, renamed = _renamed(path, stems, output, suffixes)
        del stems
        total = written = 0
        try:
            most = max(1, min(parts, count))
            ends = [(number + 1) * count // most for number in range(most)]
            with ThreadPoolExecutor(_WRITES, "faceprior-list") as pool:
                writes = deque[Future[None]]()
                for table in _cut(_finished(path, places, repeated, meeting, renamed), ends):
                    if len(writes) == _WRITES:
                        writes.popleft().result()
                    url = folder / part_name(written, "parquet")
                    writes.append(pool.submit(url.write, _encoded(table)))
                    total, written = total + len(table), written + 1
                for write in writes:
                    write.result()
            about = {"parts": written, "photographs": total, "settings": settings}
            (folder / "about.json").write(json.dumps(about, ensure_ascii=False).encode())  # last: now it is complete
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written ({reason(error)}); choose another --output") from error
    return Listing(folder, written, total, settings)


def _spool(
    inputs: Iterable[Input | Files], path: Path, suffixes: Sequence[str]
) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """Write all inputs to a file.

    Returns:
        Hashes of the inputs, and of the stems of all their results, an array for each suffix.
    """
    places, stems = array("q"), [array("q") for _ in suffixes]
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, _SCHEMA, options=_SPOOLED) as writer:
        for rows in _rows(inputs):
            try:
                batch = pa.record_batch(rows, schema=_SCHEMA)
            except UnicodeEncodeError:
                _say_what_is_no_text(rows)
                batch = pa.record_batch(rows, schema=_SCHEMA)
            writer.write_batch(batch)
            places.extend(map(hash, rows[0]))
            names = _folded(rows[1])
            for hashes, suffix in zip(stems, suffixes, strict=True):
                hashes.extend(map(hash, [name + suffix for name in names] if suffix else names))
    return np.frombuffer(places, np.int64), [np.frombuffer(hashes, np.int64) for hashes in stems]


def _folded(names: Sequence[str]) -> list[str]:
    together = "\0".join(names)
    if together.isascii() and together.count("\0") == len(names) - 1:
        return together.lower().split("\0")  # an eighth of the time
    return [folded(name) for name in names]


def _rows(inputs: Iterable[Input | Files]) -> Iterator[list[list[Any]]]:
    """The columns of the schema, for some ten thousand inputs at a time."""
    rows: list[list[Any]] = [[] for _ in _SCHEMA]
    for given in inputs:
        if isinstance(given, Unlisted):
            raise OutputError(f"{given.problem}; nothing was begun, start again")
        for column, more in zip(rows, _columns(given), strict=True):
            column.extend(more)
        if len(rows[0]) >= _ROWS:
            yield rows
            rows = [[] for _ in _SCHEMA]
    yield rows


def _say_what_is_no_text(rows: list[list[Any]]) -> None:
    """Names that are not UTF-8, which Parquet cannot hold, become problems."""
    paths, names, *_, problems = rows
    for row, path in enumerate(paths):
        shown = path.encode("utf-8", "replace").decode()
        if shown != path:
            paths[row], names[row] = shown, names[row].encode("utf-8", "replace").decode()
            problems[row] = f"{shown}: its name is not UTF-8; rename it"


def _columns(given: Input | Files) -> tuple[Iterable[Any], ...]:
    if isinstance(given, Input):
        stamp = given.stamp or {}
        own_name = f"{given.folder}/{given.path.stem}" if given.folder else given.path.stem
        return (str(given.path),), (own_name,), (stamp.get("bytes"),), (stamp.get("modified_ns"),), (given.problem,)
    inside, below = str(given.parent / "_")[:-1], f"{given.folder}/" if given.folder else ""
    nothing: list[Any] = [None] * len(given.names)
    stamps = given.stamps or {"bytes": nothing, "modified_ns": nothing}
    inputs = [inside + name for name in given.names]
    if inside.startswith("http"):
        names = [below + Url(text).stem for text in inputs]
    else:
        names = [below + name.rpartition(".")[0] for name in given.names]
    return inputs, names, stamps["bytes"], stamps["modified_ns"], nothing


def _repeated(hashes: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Those that stand there more than once, and how many different ones there are."""
    ordered = np.sort(hashes)
    same = ordered[1:] == ordered[:-1]
    return np.unique(ordered[1:][same]), len(hashes) - int(np.count_nonzero(same))


def _marked(hashes: NDArray[np.int64], some: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which are among some, sorted ones."""
    if not len(some):
        return np.zeros(len(hashes), np.bool_)
    return some[np.searchsorted(some, hashes).clip(max=len(some) - 1)] == hashes


def _renamed(
    path: Path, stems: list[NDArray[np.int64]], output: Place, suffixes: Sequence[str]
) -> tuple[NDArray[np.bool_], dict[str, str]]:
    """Which inputs' results would meet those of others, and the names that those inputs get."""
    taken = np.concatenate(stems) if len(stems) > 1 else stems[0]
    wanted, _ = _repeated(taken)
    while True:
        meeting = np.any([_marked(own, wanted) for own in stems], axis=0)
        rows = [
            row
            for batch, here in _spooled(path)
            if meeting[here].any()
            for row in batch.filter(pa.array(meeting[here])).select(["input", "name"]).to_pylist()
        ]
        given = {row["input"]: Input(place(row["input"]), row["name"].rpartition("/")[0]) for row in rows}
        own = {hash(folded(row["name"]) + suffix) for row in rows for suffix in suffixes}
        names = output_names(list(given.values()), output, suffixes)
        new = {hash(folded(name) + suffix) for name in names for suffix in suffixes} - own
        met = np.fromiter(sorted(new), np.int64, len(new))
        others = np.unique(taken[_marked(taken, met)])
        if not len(others):
            return meeting, dict(zip(given, names, strict=True))
        wanted = np.union1d(wanted, others)  # a new name meets one that met none before


def _finished(
    path: Path,
    places: NDArray[np.int64],
    repeated: NDArray[np.int64],
    meeting: NDArray[np.bool_],
    renamed: Mapping[str, str],
) -> Iterator[pa.Table]:
    """All inputs once, with the names of their results."""
    seen = set[str]()
    for batch, rows in _spooled(path):
        table = pa.Table.from_batches([batch])
        named = meeting[rows]
        if named.any():
            new = [renamed[own] for own in table["input"].filter(named).to_pylist()]
            names = pc.replace_with_mask(table["name"], pa.array(named), pa.array(new, pa.string()))
            table = table.set_column(1, _SCHEMA.field("name"), names)
        kept = ~_marked(places[rows], repeated)
        if kept.all():
            yield table
            continue
        for row in np.flatnonzero(~kept):
            text = table["input"][row].as_py()
            kept[row] = text not in seen
            seen.add(text)
        yield table.filter(pa.array(kept))


def _spooled(path: Path) -> Iterator[tuple[pa.RecordBatch, slice]]:
    """What was spooled, and which rows it is."""
    start = 0
    with pa.OSFile(str(path)) as file:
        reader = pa.ipc.open_file(file)
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            yield batch, slice(start, start + len(batch))
            start += len(batch)


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
        parquet.write_table(table, file, compression="zstd", use_dictionary=False)
        return file.getvalue()
