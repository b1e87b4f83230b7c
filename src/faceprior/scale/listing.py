"""A listing in parts: what is to be restored and what its results are called, for any number of photographs.

Ten million names do not fit into memory as objects. They are columns from the moment that their folder is listed, by
whichever machine did that, and lie packed in a file until all are known; what stays in memory is a number for each
input and for each name, by which those that meet are found.
"""

from __future__ import annotations

import gc
import io
import json
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, groupby, pairwise
from typing import IO, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import parquet

from faceprior.errors import OutputError
from faceprior.folders.inputs import (
    FACE_SUFFIX,
    Files,
    Folder,
    Input,
    Unlisted,
    folded,
    output_names,
    real,
    sort_out,
)
from faceprior.storage import Place, Url, place, reason

_AT_ONCE = 50_000  # lines, or a folder more
_FOLDERS = 8  # that a machine lists at once
_WRITES = 32  # of parts at once, for a store takes its time
_ODD = np.uint64(0x9E3779B97F4A7C15)  # of which the numbers that stand for texts are made
_PACKED = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
_ALONE = pa.ipc.IpcReadOptions(use_threads=False)  # a thousand lines are not worth a thread
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
    """A line of the listing."""

    given: Input  # the file, and what listing it has told
    name: str  # of its results, below the output folder and without ending

    @property
    def input(self) -> str:
        """Path or URL of the file, as the user would name it."""
        return str(self.given.path)


@dataclass(frozen=True)
class Listing:
    """Photographs in parts, in a folder of Parquet files."""

    folder: Url
    parts: int  # how many
    photographs: int  # in all parts
    settings: dict[str, Any]  # all that decides the results

    def read(self, part: int) -> list[Photograph]:
        """Return the photographs of a part, in order; raises OutputError."""
        url = self.folder / part_name(part, ".parquet")
        try:
            rows = parquet.read_table(io.BytesIO(url.read()), schema=_SCHEMA).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise OutputError(f"{url}: is damaged or gone ({error}); begin anew in another --output") from error
        stamps = (
            {"bytes": row["bytes"], "modified_ns": row["modified_ns"]} if row["bytes"] is not None else None
            for row in rows
        )
        return [
            Photograph(Input(place(row["input"]), problem=row["problem"], stamp=stamp), row["name"])
            for row, stamp in zip(rows, stamps, strict=True)
        ]


def part_name(part: int, ending: str) -> str:
    """What the file of a part is called."""
    return f"{part:05d}{ending}"


def read_listing(folder: Url) -> Listing | None:
    """Return the listing that is complete in a folder, or None; raises OutputError."""
    try:
        about = json.loads((folder / "about.json").read())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise OutputError(f"{folder}: cannot be read ({error}); check the access to it") from error
    return Listing(folder, about["parts"], about["photographs"], about["settings"])


@dataclass(frozen=True)
class Rows:
    """Lines of the listing, as they travel and wait."""

    packed: bytes  # an Arrow stream of the columns
    inputs: NDArray[np.uint64]  # a number for each line, the same where the input is the same
    stems: NDArray[
        np.uint64
    ]  # (stems, lines) of the output that each takes, the same where they differ in case alone


def list_rows(url: Url, belows: Sequence[str], output: Place, suffixes: Sequence[str]) -> list[Folder[Rows]]:
    """Do for some folders of a storage what `list_folder` does, several at once, for the store takes its time."""
    gc.freeze()  # or what was imported is looked through again and again, while names are told as millions of objects
    with ThreadPoolExecutor(_FOLDERS) as pool:
        told = pool.map(lambda below: (url / below).inside(), belows)
        found = [sort_out(url / below, below, inside) for below, inside in zip(belows, told, strict=True)]
    rows = (
        own
        for some in _together(own.pictures for own in found if own.pictures is not None)
        for own in _rows_of([[files] for files in some], output, suffixes)
    )
    return [Folder(own.folders, None if own.pictures is None else next(rows), own.left_out) for own in found]


def _together(given: Iterable[Files | Input]) -> Iterator[list[Files | Input]]:
    """So many inputs as are best handled at once."""
    some, lines = list[Files | Input](), 0
    for own in given:
        if isinstance(own, Unlisted):
            raise OutputError(f"{own.problem}; nothing was begun, start again")
        some.append(own)
        lines += len(own.names) if isinstance(own, Files) else 1
        if lines >= _AT_ONCE:
            yield some
            some, lines = [], 0
    if some:
        yield some


def _rows_of(groups: Sequence[Sequence[Files | Input]], output: Place, suffixes: Sequence[str]) -> list[Rows]:
    """The lines of each group of inputs, with the names that their results have if they meet those of no others."""
    given = [own for group in groups for own in group]
    lengths = [len(own.names) if isinstance(own, Files) else 1 for own in given]
    table = _columns(given, lengths)
    numbers = _numbers(table["input"])
    own = _own_stems(given, lengths, table["name"], output, numbers)
    stems = np.stack([*_result_stems(table["name"], suffixes), *own])
    # of several stems, one that is free for some may not be for all
    (names,) = _renamed([stems], lambda _: table, output, suffixes) if len(suffixes) == 1 else [{}]
    if names:
        table = _with_names(table, names)
        stems = np.stack([*_result_stems(table["name"], suffixes), *own])
    ends = np.cumsum([0, *lengths])[np.cumsum([0, *map(len, groups)])]
    return [
        Rows(_packed(table.slice(start, end - start)), numbers[start:end], stems[:, start:end])
        for start, end in pairwise(ends.tolist())
    ]


def _packed(table: pa.RecordBatch) -> bytes:
    with io.BytesIO() as file:
        with pa.ipc.new_stream(file, _SCHEMA, options=_PACKED) as writer:
            writer.write(table)
        return file.getvalue()


def _columns(given: Sequence[Files | Input], lengths: Sequence[int]) -> pa.RecordBatch:
    files = [own for own in given if isinstance(own, Files) and not str(own.parent).startswith("http")]
    if len(files) == len(given):  # on the web names are quoted
        with suppress(UnicodeEncodeError):
            return _columns_of_files(files, lengths)
    return _columns_of_any([one for own in given for one in (own.inputs if isinstance(own, Files) else [own])])


def _columns_of_files(given: Sequence[Files], lengths: Sequence[int]) -> pa.RecordBatch:
    names = pa.array(chain.from_iterable(own.names for own in given), pa.string())
    inputs = _joined(_repeat([str(own.parent / "_")[:-1] for own in given], lengths), names)
    stems = pc.list_element(pc.split_pattern(names, ".", max_splits=1, reverse=True), 0)
    stems = _joined(_repeat([f"{own.folder}/" if own.folder else "" for own in given], lengths), stems)
    stamps = [
        pa.concat_arrays(
            [pa.array(own.stamps[key]) if own.stamps else pa.nulls(len(own.names), pa.int64()) for own in given]
        )
        for key in ("bytes", "modified_ns")
    ]
    return pa.record_batch([inputs, stems, *stamps, pa.nulls(len(names), pa.string())], schema=_SCHEMA)


def _repeat(texts: Sequence[str | None], lengths: Sequence[int]) -> pa.StringArray:
    return pc.take(pa.array(texts, pa.string()), pa.array(np.repeat(np.arange(len(texts)), lengths)))


def _joined(*texts: pa.StringArray | str) -> pa.StringArray:
    return pc.binary_join_element_wise(*texts, "")


def _columns_of_any(given: Sequence[Input]) -> pa.RecordBatch:
    paths = [str(own.path) for own in given]
    inputs = [_shown(path) for path in paths]
    names = [_shown(f"{own.folder}/{own.path.stem}" if own.folder else own.path.stem) for own in given]
    sizes, changed = ([(own.stamp or {}).get(key) for own in given] for key in ("bytes", "modified_ns"))
    problems = [
        own.problem if shown == path else f"{shown}: its name is not UTF-8; rename it"
        for own, shown, path in zip(given, inputs, paths, strict=True)
    ]
    return pa.record_batch([inputs, names, sizes, changed, problems], schema=_SCHEMA)


def _own_stems(
    given: Sequence[Files | Input],
    lengths: Sequence[int],
    names: pa.StringArray,
    output: Place,
    numbers: NDArray[np.uint64],
) -> list[NDArray[np.uint64]]:
    """The stems that inputs themselves take, where they lie in the output: they are never written over."""
    root = folded(real(output))
    parents = [own.parent if isinstance(own, Files) else own.path.parent for own in given]
    places = {parent: folded(real(parent)) for parent in {*parents}}
    inner = {
        parent: f"{where[len(root) :].replace(os.sep, '/').lstrip('/')}/".lstrip("/")
        for parent, where in places.items()
        if where == root or where.startswith((f"{root}/", f"{root}{os.sep}"))
    }
    if not inner:
        return []
    below = _repeat([inner.get(parent) for parent in parents], lengths)
    stems = _folded(pc.replace_substring_regex(names, "(?s)^.*/", ""))
    short = pc.replace_substring_regex(stems, FACE_SUFFIX.pattern, "")
    inside = below.is_valid().to_numpy(zero_copy_only=False)
    shorter = inside & pc.not_equal(stems, short).to_numpy(zero_copy_only=False)
    # of those that lie elsewhere nothing that meets others
    return [
        np.where(inside, _numbers(_joined(below, stems)), numbers),
        np.where(shorter, _numbers(_joined(below, short)), ~numbers),
    ]


def _numbers(texts: pa.StringArray) -> NDArray[np.uint64]:
    """A number for each text, the same in every process: of its length and its words of 8 bytes."""
    if len(texts) > _AT_ONCE:
        return np.concatenate([_numbers(texts.slice(start, _AT_ONCE)) for start in range(0, len(texts), _AT_ONCE)])
    _, offsets, content = texts.buffers()
    ends = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    lengths = np.diff(ends)
    longest = -(-int(lengths.max(initial=1)) // 8)
    words = np.zeros((len(texts), longest), np.uint64)
    is_of_text = np.arange(8 * longest) < lengths[:, None]
    words.view(np.uint8)[is_of_text] = np.frombuffer(content or b"", np.uint8)[ends[0] : ends[-1]]
    numbers = lengths.astype(np.uint64) * _ODD
    for own, factor in zip(words.T, np.multiply.accumulate(np.full(longest, _ODD)), strict=True):
        mixed = own * factor  # of a text that is shorter 0
        numbers += (mixed ^ mixed >> np.uint64(32)) * _ODD
    return numbers


def _folded(texts: pa.StringArray) -> pa.StringArray:
    if pc.all(pc.string_is_ascii(texts)).as_py():
        return pc.ascii_lower(texts)
    return pa.array(map(folded, texts.to_pylist()), pa.string())


def _result_stems(names: pa.StringArray, suffixes: Sequence[str]) -> list[NDArray[np.uint64]]:
    names = _folded(names)
    return [_numbers(_joined(names, end)) for end in suffixes]


def _shown(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def write_listing(
    inputs: Iterable[Input | Files | Rows],
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
    with tempfile.TemporaryFile(prefix="faceprior-") as file:
        spool = _Spool(file)
        for rows in _all_rows(inputs, output, suffixes):
            spool.append(rows)
        repeated, count = _repeated(spool.inputs)
        renamed = _renamed(spool.stems, spool.table, output, suffixes)
        total = written = 0
        try:
            most = max(1, min(parts, count))
            ends = [(number + 1) * count // most for number in range(most)]
            with ThreadPoolExecutor(_WRITES, "faceprior-list") as pool:
                writes = deque[Future[None]]()
                for table in _cut(_finished(spool, repeated, renamed), ends):
                    if len(writes) == _WRITES:
                        writes.popleft().result()
                    writes.append(pool.submit(_write, folder / part_name(written, ".parquet"), table))
                    total, written = total + len(table), written + 1
                for write in writes:
                    write.result()
            about = {"parts": written, "photographs": total, "settings": settings}
            (folder / "about.json").write(json.dumps(about, ensure_ascii=False).encode())  # last: now it is complete
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written ({reason(error)}); choose another --output") from error
    return Listing(folder, written, total, settings)


def _all_rows(inputs: Iterable[Input | Files | Rows], output: Place, suffixes: Sequence[str]) -> Iterator[Rows]:
    for are_rows, own in groupby(inputs, lambda given: isinstance(given, Rows)):
        if are_rows:
            yield from cast("Iterator[Rows]", own)
        else:
            for some in _together(cast("Iterator[Files | Input]", own)):
                yield from _rows_of([some], output, suffixes)


class _Spool:
    """Rows in a file; what is in memory of them is their numbers."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._ends = file, [0]
        self.inputs, self.stems = list[NDArray[np.uint64]](), list[NDArray[np.uint64]]()

    def append(self, rows: Rows) -> None:
        self._ends.append(self._ends[-1] + self._file.write(rows.packed))
        self.inputs.append(rows.inputs)
        self.stems.append(rows.stems)

    def table(self, number: int) -> pa.Table:
        self._file.seek(self._ends[number])
        packed = self._file.read(self._ends[number + 1] - self._ends[number])
        return pa.ipc.open_stream(packed, options=_ALONE).read_all()


def _repeated(numbers: Sequence[NDArray[np.uint64]]) -> tuple[NDArray[np.uint64], int]:
    """Those that stand there more than once, and how many different ones there are."""
    ordered = np.concatenate([own.ravel() for own in numbers]) if numbers else np.empty(0, np.uint64)
    ordered.sort()
    same = ordered[1:] == ordered[:-1]
    return np.unique(ordered[1:][same]), len(ordered) - int(np.count_nonzero(same))


def _marked(numbers: NDArray[np.uint64], some: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which are among some, sorted ones."""
    if not len(some):
        return np.zeros(numbers.shape, np.bool_)
    return some[np.searchsorted(some, numbers).clip(max=len(some) - 1)] == numbers


def _renamed(
    taken: Sequence[NDArray[np.uint64]],
    table: Callable[[int], pa.Table | pa.RecordBatch],
    output: Place,
    suffixes: Sequence[str],
) -> list[dict[str, str]]:
    """Choose names for inputs whose results would meet those of others, for each table by input."""
    wanted, _ = _repeated(taken)
    while True:
        met, given = list[list[str]](), dict[str, Input]()
        for number, stems in enumerate(taken):
            meeting = _marked(stems, wanted).any(axis=0)
            some = table(number).filter(pa.array(meeting)) if meeting.any() else _SCHEMA.empty_table()
            met.append(some["input"].to_pylist())
            for text, name in zip(met[-1], some["name"].to_pylist(), strict=True):
                given[text] = Input(place(text), name.rpartition("/")[0])
        if not given:
            return [{} for _ in met]
        names = dict(zip(given, output_names([*given.values()], output, suffixes), strict=True))
        new = np.setdiff1d(_result_stems(pa.array(names.values(), pa.string()), suffixes), wanted)
        more = np.union1d(wanted, np.concatenate([stems[_marked(stems, new)] for stems in taken]))
        if len(more) == len(wanted):
            return [{text: names[text] for text in own} for own in met]
        wanted = more  # a new name meets one that met none before


def _with_names(table: pa.Table, names: Mapping[str, str]) -> pa.Table:
    new = pc.take(pa.array(names.values(), pa.string()), pc.index_in(table["input"], pa.array(names, pa.string())))
    return table.set_column(1, _SCHEMA.field("name"), pc.coalesce(new, table["name"]))


def _finished(
    spool: _Spool, repeated: NDArray[np.uint64], renamed: Sequence[Mapping[str, str]]
) -> Iterator[pa.Table]:
    """All inputs once, with the names of their results."""
    seen = set[str]()
    for number, (inputs, names) in enumerate(zip(spool.inputs, renamed, strict=True)):
        table = spool.table(number)
        if names:
            table = _with_names(table, names)
        twice = np.flatnonzero(_marked(inputs, repeated))
        if len(twice):
            kept = np.ones(len(table), np.bool_)
            for row in twice:
                text = table["input"][row].as_py()
                kept[row] = text not in seen
                seen.add(text)
            table = table.filter(pa.array(kept))
        yield table


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


def _write(url: Url, table: pa.Table) -> None:
    with io.BytesIO() as file:
        parquet.write_table(table, file, compression="zstd", use_dictionary=False)
        url.write(file.getvalue())
