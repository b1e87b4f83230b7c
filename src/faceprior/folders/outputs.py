"""Writing the files of one input's results."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from faceprior.errors import OutputError
from faceprior.images import write_file
from faceprior.photographs import Composed


def write_results(composed: Composed, folder: Path, name: str, source: Path | None = None) -> list[dict[str, Any]]:
    """Write the files of a result, each atomically.

    Args:
        composed: the result; what cannot be written of its extras is added to the notes of its record.
        folder: the output folder.
        name: what the files are called, without suffix and ending; may lie in subfolders, which are made.
        source: the input; a copy of it gets its times.

    Returns:
        For each file its path below the output folder ("file"), size ("bytes") and "sha256".

    Raises:
        OutputError: a file cannot be written.
    """
    written = []
    for file in composed.files:
        path = folder / f"{name}{file.suffix}{file.ending}"
        try:
            _make_folder(path.parent)
            write_file(path, file.content)
        except OutputError as error:
            if not file.extra:
                raise
            composed.record["notes"].append(f"left out: {error}")
            continue
        if file.copied and source is not None:
            status = source.stat()
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        digest = hashlib.sha256(file.content).hexdigest()
        written.append({"file": path.relative_to(folder).as_posix(), "bytes": len(file.content), "sha256": digest})
    return written


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror}); choose another --output") from error
