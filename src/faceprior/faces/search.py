"""Finding faces of every size and turn with a network that knows upright ones.

The photograph is searched in several scales, upright and turned by quarters, in tiles, so that memory does not grow
with it. Then each candidate is held upright and looked at closely: that sorts out what only resembled a face, and
gives landmarks that do not depend on the face's size and turn.
"""

from __future__ import annotations

import cmath
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from faceprior.errors import OptionError
from faceprior.faces.alignment import Points, cut_out
from faceprior.faces.detection import DetectedFace
from faceprior.faces.prints import without_dots

SMALLEST = 20
"""To how many pixels the smallest face is reduced for the search: still seen when turned by 30 degrees."""

UPRIGHT_PIXELS = 1.5e6
"""Largest reduced photograph that is searched: it bounds the time, and the smallest face of a large photograph."""

TURNED_PIXELS, TURNED_PIXELS_ALONE = 0.06e6, 0.5e6
"""The same for each turned copy: where upright faces are seen, and where none is."""

TILE, _OVERLAP = 640, 64  # pixels; the overlap holds the faces that only this scale finds
_COARSER = 3  # from one scale to the next
_CHIP, _ROUGH, _FACE = 128, 80, 100  # the closer looks: side of the picture, and of the face in the first and second
_AT_ONCE = 4  # chips that are looked at together
_LEAST_FACE = 8
_LEAST_SCORE = 0.5
_SURE = 0.6  # of an upright candidate, which is looked at closely before turned ones in its place
_UPRIGHT = math.radians(40)  # how far from upright a candidate may be seen once it is held upright
_LEAST_DROP = 0.2  # from the eyes to the mouth, in sides of the face's box: 0.43 in a face seen from the front
_SAME_TURN = math.radians(45)  # two candidates whose turns differ by less are held upright as one
_STEPS = 64  # of a pixel, to which landmarks are rounded: not even the last bit depends on the number of threads

Look = Callable[[NDArray[np.uint8]], list[list[DetectedFace]]]
"""A network that sees upright faces: RGB pictures of one size, (B, H, W, 3), to the faces of each."""

Each = Callable[..., Iterable[Any]]
"""How a function is called with the first of each column, with the second, ...: `map`, or one that has more hands."""


@dataclass(frozen=True)
class Candidate:
    """A square in which a face may be; places are complex numbers x + iy, in pixels of the photograph.

    Attributes:
        centre: of the square.
        across: from its image-left to its image-right side, as the face stands.
        score: of the network.
    """

    centre: complex
    across: complex
    score: float

    def upright(self, face: float) -> tuple[complex, complex]:
        """Factor and shift that put it upright into the middle of a chip, this many pixels large."""
        factor = face / self.across
        return factor, complex(_CHIP, _CHIP) / 2 - factor * self.centre


Spot = TypeVar("Spot", Candidate, DetectedFace)


def find(look: Look, photo: Image.Image, min_face: int, each: Each = map) -> list[DetectedFace]:
    """Find the faces of a photograph; see `FaceDetector`.

    Args:
        look: the network.
        photo: any mode.
        min_face: smallest face to look for, side of its box in pixels.
        each: calls the network with each tile; the result does not depend on it.

    Raises:
        OptionError: `min_face` is less than 8 pixels.
    """
    if min_face < _LEAST_FACE:
        raise OptionError(f"the smallest face is {min_face} pixels; choose {_LEAST_FACE} or more")
    photo = photo if photo.mode == "RGB" else photo.convert("RGB")
    fine, coarse, alone = (
        _scales(photo, SMALLEST / min_face, most) for most in (UPRIGHT_PIXELS, TURNED_PIXELS, TURNED_PIXELS_ALONE)
    )
    upright, turned = _search(look, photo, fine, coarse, each)
    if not any(one.score > _LEAST_SCORE for one in upright):
        turned += _search(look, photo, [], [scale for scale in alone if scale > coarse[0]], each)[1]
    # a turned face may be seen more surely than an upright one where it is misread: which turn is right shows upright
    seen = suppress([*upright, *turned], _SAME_TURN)
    sure = [one for one in upright if one.score > _SURE and abs(cmath.phase(one.across)) < _UPRIGHT]
    first = suppress([*upright, *_beside(turned, sure)], _SAME_TURN)
    found = _looked_closely(look, photo, first, each)
    others = [one for one in _beside(seen, found) if one not in first]
    found += _looked_closely(look, photo, others, each, found)
    # the dots of a print hide from near what may be seen from afar
    hidden = not found or _beside(seen, found)
    plain = without_dots(photo) if hidden else photo
    if plain is not photo:
        return find(look, plain, min_face, each)
    return sorted(found, key=lambda face: -face.side)


def _beside(ones: Iterable[Spot], others: Sequence[Candidate | DetectedFace]) -> list[Spot]:
    """Those that share no more than half of the smaller one with any of the others."""
    squares = [_square(one) for one in others]
    return [one for one in ones if not any(_shared(_square(one), square) > 0.5 for square in squares)]


def _looked_closely(
    look: Look,
    photo: Image.Image,
    candidates: Sequence[Candidate],
    each: Each,
    known: Sequence[DetectedFace] = (),
) -> list[DetectedFace]:
    """The candidates that are faces from near, but for those that are known."""
    held = suppress(list(_held_upright(look, photo, candidates, each)))
    return _beside(_measured(look, photo, held, each), known)


def _scales(photo: Image.Image, wanted: float, most: float) -> list[float]:
    """Scales in which a photograph is searched, the finest first, which has no more than so many pixels."""
    scales = [min(wanted, math.sqrt(most / (photo.width * photo.height)))]
    while max(photo.size) * scales[-1] > TILE / 2:
        scales.append(scales[-1] / _COARSER)
    return scales


def _search(
    look: Look, photo: Image.Image, upright: Sequence[float], turned: Sequence[float], each: Each
) -> tuple[list[Candidate], list[Candidate]]:
    """What is seen in some scales upright, and in some in copies that are turned by quarters."""
    tiles = list[tuple[NDArray[np.uint8], complex, complex, bool]]()
    level = photo
    for scale in sorted({*upright, *turned}, reverse=True):
        size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
        level = level.resize(size, Image.Resampling.BICUBIC, reducing_gap=1.0)
        for quarter in [0] * (scale in upright) + [1, 2, 3] * (scale in turned):
            copy = np.rot90(np.asarray(level), quarter)
            middle, back = complex(copy.shape[1], copy.shape[0]) / 2, 1j**quarter / scale
            for left, top, right, bottom in _tiles(copy.shape[1], copy.shape[0]):
                tiles.append((copy[None, top:bottom, left:right], complex(left, top) - middle, back, quarter > 0))
    tiles.sort(key=lambda tile: -tile[0].size)  # the small ones fill up what time the cores have left
    centre, found = complex(photo.width, photo.height) / 2, (list[Candidate](), list[Candidate]())
    for (faces,), (_, corner, back, is_turned) in zip(each(look, [tile[0] for tile in tiles]), tiles, strict=True):
        for seen in map(_seen, faces):
            place = centre + (corner + seen.centre) * back
            found[is_turned].append(Candidate(place, seen.across * back, seen.score))
    return found


def _tiles(width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    """Left, top, right and bottom of the tiles that cover a picture, all about as large."""
    for top, bottom in _parts(height):
        for left, right in _parts(width):
            yield left, top, right, bottom


def _parts(side: int) -> list[tuple[int, int]]:
    count = max(1, math.ceil((side - _OVERLAP) / (TILE - _OVERLAP)))
    starts = [index * (side - _OVERLAP) // count for index in range(count + 1)]
    return [(start, min(side, stop + _OVERLAP)) for start, stop in itertools.pairwise(starts)]


def _seen(face: DetectedFace) -> Candidate:
    """The square around a face, turned as its landmarks are."""
    left, top, right, bottom = face.box
    eye, other_eye, _, corner, other_corner = (complex(*point) for point in face.landmarks)
    across = other_eye - eye + other_corner - corner  # of a profile it is short, and what is down tells the turn
    down = corner + other_corner - eye - other_eye
    turn = cmath.phase(across - 1j * down)
    side = math.sqrt((right - left) * (bottom - top))
    return Candidate(complex(left + right, top + bottom) / 2, cmath.rect(side, turn), face.score)


def _held_upright(look: Look, photo: Image.Image, candidates: Sequence[Candidate], each: Each) -> Iterator[Candidate]:
    """Hold each candidate upright and yield it as it is seen then, if it is."""
    candidates = [one for one in candidates if _is_inside(one.centre, photo)]
    chips = _chips(photo, candidates, _ROUGH, each)
    for candidate, faces in zip(candidates, _looked(look, chips, each), strict=True):
        factor, shift = candidate.upright(_ROUGH)
        if seen := _central(faces, _ROUGH):
            square = _seen(seen)
            centre, across = (square.centre - shift) / factor, square.across / factor
            yield Candidate(centre, across, seen.score)


def _measured(look: Look, photo: Image.Image, candidates: Sequence[Candidate], each: Each) -> Iterator[DetectedFace]:
    """Look closely at candidates that are upright, and at their mirror images; yield those that are seen in both."""
    candidates = [one for one in candidates if _is_inside(one.centre, photo)]
    chips = _chips(photo, candidates, _FACE, each)
    both = _looked(look, np.concatenate([chips, chips[:, :, ::-1]]), each)
    for candidate, faces, mirrored in zip(candidates, both[: len(chips)], both[len(chips) :], strict=True):
        seen, other = _central(faces, _FACE), _central(mirrored, _FACE)
        if seen is None or other is None or (score := (seen.score + other.score) / 2) < _LEAST_SCORE:
            continue
        factor, shift = candidate.upright(_FACE)
        exchanged = (_CHIP - np.conj(_complex(other.landmarks)))[[1, 0, 2, 4, 3]]
        places = ((_complex(seen.landmarks) + exchanged) / 2 - shift) / factor
        landmarks = np.round(np.stack([places.real, places.imag], 1) * _STEPS) / _STEPS
        square, mirror = _seen(seen), _seen(other)
        centre = ((square.centre + _CHIP - mirror.centre.conjugate()) / 2 - shift) / factor
        half = (abs(square.across) + abs(mirror.across)) / abs(factor) / 4
        x, y, half = (round(value * _STEPS) / _STEPS for value in (centre.real, centre.imag, half))
        yield DetectedFace((x - half, y - half, x + half, y + half), [tuple(p) for p in landmarks.tolist()], score)


def _square(face: Candidate | DetectedFace) -> Candidate:
    if isinstance(face, Candidate):
        return face
    left, top, right, bottom = face.box
    return Candidate(complex(left + right, top + bottom) / 2, complex(face.side), face.score)


def _is_inside(place: complex, photo: Image.Image) -> bool:
    return 0 <= place.real < photo.width and 0 <= place.imag < photo.height


def _chips(photo: Image.Image, candidates: Sequence[Candidate], face: int, each: Each) -> NDArray[np.uint8]:
    """Candidates, upright in the middle of a picture each, (N, 128, 128, 3)."""
    chips = list(each(partial(_chip, photo, face), candidates))
    return np.stack(chips) if chips else np.empty((0, _CHIP, _CHIP, 3), np.uint8)


def _chip(photo: Image.Image, face: int, candidate: Candidate) -> NDArray[np.uint8]:
    """A candidate, upright in the middle of a picture, (128, 128, 3); black where the photograph ends.

    Reflected there, a face that the frame cuts would have a second eye in its mirror image.
    """
    reach = math.ceil(abs(candidate.across) * _CHIP / face / math.sqrt(2)) + 2  # to the corners of a turned chip
    left, top = math.floor(candidate.centre.real) - reach, math.floor(candidate.centre.imag) - reach
    part = photo.crop((left, top, left + 2 * reach + 1, top + 2 * reach + 1))
    factor, shift = candidate.upright(face)
    shift += factor * complex(left, top)
    coarse = max(1.0, 1 / abs(factor))  # what is reduced anyway is cheaper to turn afterwards
    side = math.ceil(part.width / coarse)
    part, factor = part.resize((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0), factor * part.width / side
    matrix = np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])
    return np.asarray(cut_out(part, matrix, _CHIP))


def _looked(look: Look, chips: NDArray[np.uint8], each: Each) -> list[list[DetectedFace]]:
    size = min(_AT_ONCE, -(-len(chips) // 2))  # of one face, too, the chips are on two cores
    batches = [chips[start : start + size] for start in range(0, len(chips), size or 1)]
    return [faces for batch in each(look, batches) for faces in batch]


def _central(faces: Sequence[DetectedFace], side: int) -> DetectedFace | None:
    """The surest of the faces in the middle of a chip that are about as large as they should be."""
    central = [
        face
        for face in faces
        if abs((square := _seen(face)).centre - complex(_CHIP, _CHIP) / 2) < side / 3
        and 0.6 < abs(square.across) / side < 1.6
        and _is_upright(face)
    ]
    return max(central, key=lambda face: face.score, default=None)


def _is_upright(face: DetectedFace) -> bool:
    """Whether the mouth is as far below the eyes as in an upright face; where one is misread, it is not."""
    turn = cmath.phase(_seen(face).across)
    eyes, mouth = (sum(y for _, y in points) / 2 for points in (face.landmarks[:2], face.landmarks[3:]))
    return abs(turn) < _UPRIGHT and mouth - eyes > _LEAST_DROP * face.side


def _complex(points: Points) -> NDArray[np.complex128]:
    return np.asarray(np.asarray(points, np.float64) @ (1, 1j), np.complex128)


def suppress(candidates: Sequence[Candidate], turn: float = math.pi) -> list[Candidate]:
    """Keep the best of the candidates that show one face (non-maximum suppression).

    Two show one face if they share more than half of the smaller one, and are turned alike.

    Args:
        candidates: in any order.
        turn: by how much the turns of one face may differ, in radians; π leaves them aside.
    """
    kept: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda one: -one.score):
        if not any(
            _shared(candidate, better) > 0.5 and abs(cmath.phase(candidate.across / better.across)) <= turn
            for better in kept
        ):
            kept.append(candidate)
    return kept


def _shared(one: Candidate, other: Candidate) -> float:
    """Share of the smaller of two squares that lies in the other."""
    smaller, reach = min(abs(one.across), abs(other.across)), (abs(one.across) + abs(other.across)) / 2
    apart = one.centre - other.centre
    overlaps = (min(smaller, max(0.0, reach - abs(way))) for way in (apart.real, apart.imag))
    return math.prod(overlaps) / smaller**2
