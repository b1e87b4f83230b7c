"""The files that one input's results are written to."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from PIL import Image

from faceprior.errors import OutputError
from faceprior.images import SUFFIXES, Picture, to_pil, write_file, write_picture, write_png
from faceprior.pipeline.results import Restored, spread_picture


class Outputs:
    """Writes the results of one input, each atomically, and keeps account of them.

    Args:
        folder: the output folder.
        name: what the files are called, without suffix and ending; may lie in subfolders, which are made.

    Attributes:
        files: for each file that was written its path below the output folder ("file"), size ("bytes") and "sha256".
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self.files: list[dict[str, Any]] = []

    def png(self, suffix: str, image: Image.Image, metadata: dict[str, Any]) -> None:
        """Write `<name><suffix>.png`."""
        path = self._path(suffix, ".png")
        write_png(path, image, metadata)
        self._written(path)

    def picture(
        self, suffix: str, pixels: NDArray[Any], like: Picture, source: Path, metadata: dict[str, Any]
    ) -> None:
        """Write a picture in the format of the one that it was made from, with its file's ending if that fits."""
        endings = SUFFIXES[like.written_as]
        path = self._path(suffix, source.suffix if source.suffix.lower() in endings else endings[0])
        write_picture(path, pixels, like, metadata)
        self._written(path)

    def copy(self, source: Path) -> None:
        """Write the input as it is."""
        path = self._path("", source.suffix)
        write_file(path, source.read_bytes())
        self._written(path)

    def face(self, suffix: str, result: Restored, made: dict[str, Any], *, with_sheet: bool) -> None:
        """Write all that there is of a face: samples, mean and spread of several, and a sheet if it is wanted."""
        samples = len(result.images)
        for number, (image, agreement) in enumerate(zip(result.images, result.lr_consistency, strict=True), 1):
            own = {"content": "sample", "sample": number, "lr_consistency": round(agreement, 3)}
            self.png(f"{suffix}{sample_suffix(number)}", to_pil(image), {**made, **own})
        if samples > 1:
            self.png(f"{suffix}-mean", to_pil(result.mean), {**made, "content": "mean", "samples": samples})
            spread = spread_picture(result.spread)
            self.png(f"{suffix}-spread", spread, {**made, "content": "spread", "samples": samples})
        if with_sheet:
            self.png(f"{suffix}-sheet", result.sheet(), {**made, "content": "sheet", "samples": samples})

    def _path(self, suffix: str, ending: str) -> Path:
        path = self._folder / f"{self._name}{suffix}{ending}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{path.parent}: cannot be made ({error.strerror}); choose another --output") from error
        return path

    def _written(self, path: Path) -> None:
        digest, size = hashlib.sha256(), 0
        try:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
                    size += len(block)
        except OSError as error:
            raise OutputError(f"{path}: was written but cannot be read back ({error.strerror})") from error
        name = path.relative_to(self._folder).as_posix()
        self.files.append({"file": name, "bytes": size, "sha256": digest.hexdigest()})


def sample_suffix(number: int) -> str:
    """What is appended to the name of a sample, counted from 1; nothing to the first's."""
    return f"-{number}" if number > 1 else ""
