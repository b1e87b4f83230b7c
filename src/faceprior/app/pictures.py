"""Pictures for the screen: small enough for a browser, in a format that it knows."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from faceprior.app.studio import Run
from faceprior.images import decode_picture, read_image, square
from faceprior.photographs import Prepared
from faceprior.photographs.results import doubt_picture

LONGEST_SIDE, SHORTEST_SIDE = 1600, 640
"""Longest side of a photograph on the page, in pixels: larger ones are reduced, smaller ones enlarged."""

CLOSE_UP = 640
"""Side of a face on the page, in pixels."""

_AROUND = 2.2  # side of a close-up, in sides of the face's box
_EMERGING = 192  # side of an emerging face, in pixels


def write_views(run: Run, files: Sequence[Path], folder: Path) -> list[dict[str, Any]]:
    """Write what the page shows of a run: each restored face from near, then the whole photograph.

    Args:
        run: the restoration.
        files: of its results, the samples first.
        folder: where to.

    Returns:
        Of each view its name, in words, and its files: the picture `before`, enlarged as the result is, those `after`
        of each sample, and the map of the `doubt`, None where there is none.
    """
    prepared = run.prepared
    samples = [read_image(path) for path in files[: run.options.samples]]
    photo = decode_picture(prepared.content, prepared.name).image
    photo = (square(photo) if prepared.aligned else photo).resize(samples[0].size, Image.Resampling.LANCZOS)
    views = list[dict[str, Any]]()

    def add(name: str, pictures: Sequence[Image.Image], doubt: Path | None = None) -> None:
        paths = [folder / f"{len(views)}-{index}.webp" for index in range(len(pictures))]
        for picture, path in zip(pictures, paths, strict=True):
            _write(picture, path)
        before, *after = map(str, paths)
        views.append({"name": name, "before": before, "after": after, "doubt": doubt and str(doubt)})

    for position, index in enumerate(condition.index for condition in prepared.conditions):
        near = [photo, *samples]
        if not prepared.aligned:
            box = _around(prepared, index, photo.size)
            near = [image.crop(box) for image in near]
        doubt = None
        if run.doubt is not None:
            doubt = folder / f"{index}-doubt.webp"
            _write(_enlarged(doubt_picture(run.doubt[position])), doubt)
        add(f"Face {index + 1}", [_enlarged(image) for image in near], doubt)
    if not prepared.aligned:
        add("Whole photo", [reduced(image) for image in (photo, *samples)])
    return views


def _around(prepared: Prepared, index: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A square around a face, inside a result of that size."""
    factor = size[0] / prepared.size[0]
    left, top, right, bottom = (value * factor for value in prepared.faces[index].found.box)
    side = min(_AROUND * max(right - left, bottom - top), *size)
    x = min(max(0.0, (left + right - side) / 2), size[0] - side)
    y = min(max(0.0, (top + bottom - side) / 2), size[1] - side)
    return round(x), round(y), round(x + side), round(y + side)


def reduced(image: Image.Image) -> Image.Image:
    """Return a picture with no side longer than `LONGEST_SIDE`."""
    factor = LONGEST_SIDE / max(image.size)
    if factor >= 1:
        return image
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=1.0)


def _enlarged(face: Image.Image) -> Image.Image:
    return face.resize((CLOSE_UP, CLOSE_UP), Image.Resampling.BICUBIC)


def _write(image: Image.Image, path: Path) -> None:
    image.save(path, format="WEBP", quality=92, method=2)


def write_preview(photo: Image.Image, folder: Path) -> Path:
    """Write a photograph as a browser shows it, large enough to choose a face in it."""
    path, image = folder / "preview.webp", reduced(photo)
    factor = max(1, SHORTEST_SIDE // max(image.size))
    _write(image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC), path)
    return path


def data_address(face: Image.Image) -> str:
    """Return a face as the address that a browser shows without asking the server again."""
    file = io.BytesIO()
    face.resize((_EMERGING, _EMERGING), Image.Resampling.BICUBIC).save(file, format="JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
