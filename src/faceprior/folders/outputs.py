"""Writing the files of one input's results."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faceprior.errors import OutputError
from faceprior.storage import Place, Url, write

if TYPE_CHECKING:
    from faceprior.photographs import Composed


def write_results(composed: Composed, folder: Place, name: str, source: Place | None = None) -> list[dict[str, Any]]:
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
            make_folder(path.parent)
            write(path, file.content)
        except OutputError as error:
            if not file.extra:
                raise
            composed.record["notes"].append(f"left out: {error}")
            continue
        if file.copied and isinstance(source, Path) and isinstance(path, Path):
            status = source.stat()
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        digest = hashlib.sha256(file.content).hexdigest()
        written.append({"file": _relative(path, folder), "bytes": len(file.content), "sha256": digest})
    return written


def about_file(content: Path, path: Place, folder: Place) -> dict[str, Any]:
    """Return what `write_results` says of a file for one whose content was written in another way."""
    digest = hashlib.sha256()
    with content.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"file": _relative(path, folder), "bytes": content.stat().st_size, "sha256": digest.hexdigest()}


def _relative(path: Place, folder: Place) -> str:
    if isinstance(path, Url) or isinstance(folder, Url):
        return str(path).removeprefix(f"{folder}/")
    return (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()


def make_folder(folder: Place) -> None:
    """Make a folder, and those that it lies in, where they are not made by writing; raises OutputError."""
    if isinstance(folder, Url):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written to ({error.strerror}); choose another --output") from error
