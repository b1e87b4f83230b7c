"""The table of a benchmark: one row an image, kept in small files that are written at once or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faceprior.benchmark.metrics import COSTS, PER_ROW
from faceprior.errors import DataError, FacePriorError, one_line
from faceprior.folders.outputs import make_folder
from faceprior.images.writing import write_file

if TYPE_CHECKING:
    import pyarrow as pa

RESULTS, PARTS = "results.parquet", "parts"

Row = dict[str, Any]

COLUMNS = {
    **dict.fromkeys(("id", "dataset", "face", "face_sha256", "labels", "method", "method_name", "options"), "string"),
    **dict.fromkeys(("degradation", "prior", "prior_sha256", "corrector", "corrector_sha256"), "string"),
    **dict.fromkeys(("identity_network", "device", "dtype", "faceprior", "torch"), "string"),
    **dict.fromkeys(("image", "input", "truth", "error"), "string"),
    **dict.fromkeys(("resolution", "seed", "noise_seed", "sample", "samples", "batch_size"), "int64"),
    "whole_batches": "bool",
    **dict.fromkeys(("scale", "same_person_threshold", *COSTS, *PER_ROW), "float64"),
    "missing": "string",
    "embedding": "list",
}
"""Kinds of the columns, by name; a list is of float32. Every one may be empty but `id`."""


def full_row(values: Row) -> Row:
    """Return a row that has every column, None where there is no value."""
    return {name: values.get(name) for name in COLUMNS}


def _schema() -> pa.Schema:
    try:
        import pyarrow as pa
    except ImportError as error:
        raise FacePriorError(
            "a benchmark needs pyarrow; install it with: pip install 'faceprior[research]'"
        ) from error
    vectors = pa.list_(pa.float32())
    return pa.schema([(name, vectors if kind == "list" else kind) for name, kind in COLUMNS.items()])


class Results:
    """Rows by id, in a folder: `results.parquet`, and `parts/` with what came after it was last written.

    Raises:
        FacePriorError: pyarrow is not installed.
        DataError: a file is not a table of this kind.
        OutputError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._schema = _schema()
        make_folder(folder / PARTS)
        self.rows: dict[str, Row] = {}
        for path in (folder / RESULTS, *sorted((folder / PARTS).glob("*.parquet"))):  # later ones win
            if path.is_file():
                self.rows.update((row["id"], row) for row in self._read(path))

    def _read(self, path: Path) -> list[Row]:
        from pyarrow import ArrowException, parquet

        try:
            table = parquet.read_table(path)
            if "id" not in table.column_names:
                raise DataError(f"{path} is not a table of faceprior benchmark; choose another --output")
            return table.to_pylist()
        except (ArrowException, OSError) as error:
            raise DataError(
                f"{path} is damaged ({one_line(error)}); remove it, and its faces are done again"
            ) from error

    def add(self, rows: Sequence[Row]) -> None:
        """Keep rows: they take the place of rows with their ids. Written as one new part, if any of them is new."""
        new = [row for row in rows if self.rows.get(row["id"]) != row]
        if new:
            self._write(self.folder / PARTS / f"{time.time_ns():020d}-{secrets.token_hex(4)}.parquet", new)
            self.rows.update((row["id"], row) for row in new)

    def merge(self, first: Iterable[Row]) -> None:
        """Write all rows into `results.parquet`, then remove the parts.

        Rows of this run come first; rows of others follow, but not their failures, which are out of date.
        """
        parts = list((self.folder / PARTS).glob("*.parquet"))
        own = {row["id"]: row for row in first}
        others = {key: row for key, row in self.rows.items() if key not in own and row["error"] is None}
        self.rows = {**own, **others}
        self._write(self.folder / RESULTS, list(self.rows.values()))
        for path in parts:
            path.unlink()

    def _write(self, path: Path, rows: Iterable[Row]) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        content = io.BytesIO()
        parquet.write_table(pa.Table.from_pylist(list(rows), schema=self._schema), content)
        write_file(path, content.getvalue())


def identify(values: Mapping[str, Any]) -> str:
    """Hash everything that decides a result: 20 hex digits of SHA-256."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:20]
