"""Training faces out of photographs: found, aligned to the template of the package's priors, and looked over."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from faceprior.errors import DataError, ImageError
from faceprior.faces import FaceDetector
from faceprior.faces.alignment import alignment, corners, cut_out, magnification
from faceprior.faces.sharpness import measure_face
from faceprior.images import decode_picture, write_png
from faceprior.priors.card import TIGHT_TEMPLATE
from faceprior.storage import Place, read

INDEX = "index.csv"
COLUMNS = ("file", "source", "terms", "licence", "original", "detail")

_OUTSIDE = 0.1  # how far an aligned face may reach beyond its photograph, as a fraction of its side


class CutReport(NamedTuple):
    """How many faces `cut_faces` wrote, how many not and why, and a line for each photograph it could not read."""

    faces: int
    left_out: list[str]
    problems: list[str]


def cut_faces(
    photographs: Iterable[tuple[Place, str, str]],
    output: Path,
    detector: FaceDetector,
    *,
    size: int = 128,
    min_detail: float | None = None,
    on_photograph: Callable[[], object] = lambda: None,
) -> CutReport:
    """Find the faces of photographs and write each as an aligned PNG, with an `index.csv` that `pack` reads.

    Args:
        photographs: for each its path, the name of its faces' files (below the output, without ending), and the
            collection that it belongs to.
        output: folder for the faces; must not hold an index yet.
        detector: finds the faces.
        size: side of the aligned faces, in pixels.
        min_detail: least effective resolution of a face, in pixels across; None is three quarters of `size`. What a
            prior learns from is what it makes.
        on_photograph: called after every photograph, for a progress bar.

    Raises:
        DataError: the output holds an index, or no face at all was written.
        OutputError: a face cannot be written.
    """
    if (output / INDEX).exists():
        raise DataError(f"{output / INDEX} exists; remove the folder or choose another --output")
    least = 0.75 * size if min_detail is None else min_detail
    blurred = outside = faceless = faces = 0
    problems: list[str] = []
    output.mkdir(parents=True, exist_ok=True)
    with (output / INDEX).open("w", newline="", encoding="utf-8") as file:
        index = csv.writer(file)
        index.writerow(COLUMNS)
        for path, name, source in photographs:
            try:
                photo = decode_picture(read(path), str(path)).image
                detections = detector(photo)
                faceless += not detections
                for number, face in enumerate(detections, 1):
                    transform = alignment(face.landmarks, TIGHT_TEMPLATE, size)
                    detail = measure_face(photo, transform, size).effective_side
                    if _reaches_outside(photo, transform, size):
                        outside += 1
                    elif detail < least:
                        blurred += 1
                    else:
                        target = f"{name}-face{number}.png"
                        (output / target).parent.mkdir(parents=True, exist_ok=True)
                        write_png(output / target, cut_out(photo, transform, size))
                        index.writerow((target, source, "unknown", "unknown", str(path), f"{detail:.0f}"))
                        faces += 1
            except ImageError as error:
                problems.append(str(error))
            on_photograph()
    reasons = {
        f"faces with less than {least:.0f} pixels of detail (--min-detail)": blurred,
        "faces that the edge of a photograph cuts": outside,
        "photographs without a face": faceless,
    }
    left_out = [f"{count} {what}" for what, count in reasons.items() if count]
    if not faces:
        (output / INDEX).unlink()
        why = "; ".join([*left_out, *problems[:3]]) or "there were no photographs"
        raise DataError(f"no face was written to {output}: {why}")
    return CutReport(faces, left_out, problems)


def _reaches_outside(photo: Image.Image, transform: NDArray[np.float64], size: int) -> bool:
    places, room = corners(transform, size), _OUTSIDE * size / magnification(transform)
    return bool((places < -room).any() or (places.max(0) > np.array(photo.size) + room).any())
