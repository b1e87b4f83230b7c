"""Finding faces in two looks: a search of the whole photograph, then each candidate held upright and seen closely.

The second look sorts out most of what only resembled a face, and gives landmarks that do not depend on the face's
size and turn. Where nothing is found, the photograph is searched for upright faces once more, sharpened: detectors
have learnt sharp faces, and those of a badly blurred photograph are often seen only then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from faceprior.errors import OptionError
from faceprior.faces.alignment import Points, cut_out, inverted
from faceprior.faces.detection import DetectedFace
from faceprior.faces.search import TURNS, Candidate, Look, Seen, search, suppress
from faceprior.faces.threads import in_parallel

_CHIP, _FACE = 320, 150  # a candidate is looked at again in a chip of this side, the face being this large in it
_UPRIGHTS = 2  # how often a face is held upright by its own eyes
_LEAST_FACE = 8
_SHARPENING = ImageFilter.UnsharpMask(radius=5, percent=400, threshold=0)  # at the size at which a detector looks


class UprightFaces(Protocol):
    """What knows upright faces of one size and more.

    Attributes:
        window: side of the smallest face that it finds, in pixels.
        least_score: from which a face, looked at twice, is one.
    """

    window: int
    least_score: float

    def look(self, pixels: NDArray[np.uint8]) -> list[Seen]:
        """Find faces in RGB, (H, W, 3)."""

    def landmarks(self, pixels: NDArray[np.uint8], seen: Seen) -> NDArray[np.float64]:
        """Return the five landmarks of a face that was seen there, (5, 2), pixels from the outer corner."""


def find(known: UprightFaces, photo: Image.Image, min_face: int) -> list[DetectedFace]:
    """Find the faces of a photograph; see `FaceDetector`.

    Raises:
        OptionError: `min_face` is less than 8 pixels.
    """
    if min_face < _LEAST_FACE:
        raise OptionError(f"the smallest face is {min_face} pixels; choose {_LEAST_FACE} or more")
    photo = photo.convert("RGB")
    found = _seen_by(known.look, known, photo, min_face) or _seen_by(
        _sharpened(known.look), known, photo, min_face, turns=()
    )
    return sorted(found, key=lambda face: -face.side)


def _seen_by(
    look: Look, known: UprightFaces, photo: Image.Image, min_face: int, turns: Sequence[float] = TURNS
) -> list[DetectedFace]:
    faces: dict[Candidate, Points] = {}
    candidates = suppress(search(photo, look, known.window, min_face, turns))
    for found in in_parallel(partial(_look_again, look, known, photo), candidates):
        faces.update(found)
    certain = [square for square in suppress(list(faces)) if square.score >= known.least_score]
    return [DetectedFace(square.box, faces[square], square.score) for square in certain]


def _sharpened(look: Look) -> Look:
    return lambda pixels: look(np.asarray(Image.fromarray(pixels).filter(_SHARPENING)))


def _look_again(look: Look, known: UprightFaces, photo: Image.Image, candidate: Candidate) -> dict[Candidate, Points]:
    """Hold a candidate upright by its own eyes and look at it closely; nothing is returned if it is no face."""
    landmarks: Points = ()
    for _ in range(_UPRIGHTS):
        to_chip = _upright(candidate)
        chip = np.asarray(cut_out(photo, to_chip, _CHIP))
        central = [seen for seen in look(chip) if _is_central(seen)]
        if not central:
            return {}
        seen = max(central, key=lambda one: one.score)
        to_photo = inverted(to_chip)
        places = np.vstack([known.landmarks(chip, seen), (seen.x, seen.y)])
        *landmarks, centre = [(float(x), float(y)) for x, y in places @ to_photo[:, :2].T + to_photo[:, 2]]
        (left, top), (right, bottom) = landmarks[:2]
        turn = math.degrees(math.atan2(bottom - top, right - left))
        candidate = Candidate(centre, seen.side * float(np.hypot(*to_photo[:, 0])), turn, seen.score)
    return {candidate: landmarks}


def _upright(candidate: Candidate) -> NDArray[np.float64]:
    """The similarity that puts a candidate upright into the middle of a chip."""
    factor = _FACE / candidate.side * np.exp(-1j * math.radians(candidate.turn))
    shift = complex(_CHIP, _CHIP) / 2 - factor * complex(*candidate.centre)
    return np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])


def _is_central(seen: Seen) -> bool:
    return math.hypot(seen.x - _CHIP / 2, seen.y - _CHIP / 2) < _FACE / 3 and 0.6 < seen.side / _FACE < 1.6
