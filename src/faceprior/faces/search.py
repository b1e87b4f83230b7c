"""Looking for faces of every size and turn with a detector that knows upright faces of one size.

The photograph is searched at several scales, an octave apart, in tiles, so that memory does not grow with it; its
border is continued, so that faces cut by it are found; and turned copies are searched for faces that are turned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from faceprior.faces.threads import in_parallel

TILE, _OVERLAP = 2048, 256  # pixels of the searched scale; the overlap holds the faces that only this scale finds
_BORDER = 0.5  # of the detector's window: how far the photograph is continued

UPRIGHT_PIXELS = 48e6
"""Largest scaled photograph that is searched: it bounds the time, and the smallest face of a large photograph."""

TURNED_PIXELS, TURNED_PIXELS_ALONE = 2e6, 4e6
"""The same for each turned copy: where upright faces were found, and where none was."""

TURNS = (60.0, 120.0, 180.0, 240.0, 300.0)
"""By how many degrees the copies are turned; a detector of upright faces covers 30 degrees to either side."""


@dataclass(frozen=True)
class Candidate:
    """A square in which a face may be.

    Attributes:
        centre: (x, y) in the photograph.
        side: in pixels of the photograph.
        turn: of the face, clockwise, in degrees.
        score: of the detector.
    """

    centre: tuple[float, float]
    side: float
    turn: float
    score: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of the square, held upright."""
        (x, y), half = self.centre, self.side / 2
        return x - half, y - half, x + half, y + half


class Seen(NamedTuple):
    """A face in a picture that a detector looked at: its centre, side and score, pixels from the outer corner."""

    x: float
    y: float
    side: float
    score: float


Look = Callable[[NDArray[np.uint8]], list[Seen]]
"""A detector of upright faces in RGB, (H, W, 3)."""


def search(
    photo: Image.Image, look: Look, window: int, min_face: int, turns: Sequence[float] = TURNS
) -> list[Candidate]:
    """Look for faces; the same face may be found more than once.

    Args:
        photo: RGB.
        look: finds upright faces of `window` pixels and more.
        window: side of the smallest face that `look` finds.
        min_face: smallest face to look for, in pixels of the photograph.
        turns: by how many degrees the copies are turned.
    """
    scale = window / min_face
    found = _search(photo, look, window, scale, UPRIGHT_PIXELS, [0.0])
    most = TURNED_PIXELS if found else TURNED_PIXELS_ALONE
    return found + _search(photo, look, window, scale, most, turns)


@dataclass(frozen=True)
class _Tile:
    """A part of a turned plane over the photograph at one scale.

    Places are complex numbers x + iy, so a turned and enlarged plane is a factor and a shift.

    Attributes:
        level: the photograph at that scale, with its border continued.
        size: width and height of the tile.
        origin: of the tile, in pixels of the level.
        factor: of the tile's pixels, in pixels of the level.
        corner: of the photograph, in pixels of the level.
        to_photo: of the level's pixels, in pixels of the photograph.
        turn: of the plane, in degrees.
    """

    level: Image.Image
    size: tuple[int, int]
    origin: complex
    factor: complex
    corner: complex
    to_photo: float
    turn: float

    def search(self, look: Look) -> list[Candidate]:
        """Return what is seen in it."""
        factor, origin = self.factor, self.origin
        matrix = (factor.real, -factor.imag, origin.real, factor.imag, factor.real, origin.imag)
        pixels = self.level.transform(self.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
        found = []
        for x, y, side, score in look(np.asarray(pixels)):
            place = (origin + factor * complex(x, y) - self.corner) * self.to_photo
            found.append(Candidate((place.real, place.imag), side * abs(factor) * self.to_photo, self.turn, score))
        return found


def _search(
    photo: Image.Image, look: Look, window: int, scale: float, most: float, turns: Sequence[float]
) -> list[Candidate]:
    tiles = _planes(photo, window, min(scale, math.sqrt(most / (photo.width * photo.height))), turns)
    return [candidate for found in in_parallel(lambda tile: tile.search(look), tiles) for candidate in found]


def _planes(photo: Image.Image, window: int, scale: float, turns: Sequence[float]) -> Iterator[_Tile]:
    """Yield the tiles of all turned planes, an octave after the other, until the window covers half of the plane."""
    widest = math.inf
    while turns and widest >= 2 * window:
        level, to_photo, border = _level(photo, scale, round(_BORDER * window))
        middle, widest = complex(level.width, level.height) / 2, 0
        for turn in turns:
            factor = np.exp(1j * math.radians(turn)) * min(1.0, 1 / scale)
            extent = _extent(level.width, level.height, factor)
            for left, top, width, height in _tiles(*extent):
                origin = middle + factor * (complex(left, top) - complex(*extent) / 2)
                yield _Tile(level, (width, height), origin, factor, complex(border, border), to_photo, turn)
            widest = max(widest, *extent)
        scale /= 2


def _level(photo: Image.Image, scale: float, border: int) -> tuple[Image.Image, float, int]:
    """Return the photograph, reduced where the scale asks for it, with its border continued, and how to go back."""
    if scale < 1:
        size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
        reduced = photo.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    else:
        reduced, border = photo, math.ceil(border / scale)
    continued = np.pad(np.asarray(reduced), ((border, border), (border, border), (0, 0)), mode="edge")
    return Image.fromarray(continued), photo.width / reduced.width, border


def _extent(width: int, height: int, factor: complex) -> tuple[int, int]:
    size = abs(factor) ** 2
    cosine, sine = abs(factor.real) / size, abs(factor.imag) / size
    return math.ceil(width * cosine + height * sine), math.ceil(width * sine + height * cosine)


def _tiles(width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    step = TILE - _OVERLAP
    for top in range(0, max(1, height - _OVERLAP), step):
        for left in range(0, max(1, width - _OVERLAP), step):
            yield left, top, min(TILE, width - left), min(TILE, height - top)


def suppress(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Keep the best of the candidates that show one face (non-maximum suppression).

    Two show one face if they share more than half of the smaller one.
    """
    kept: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda one: -one.score):
        if all(_shared(candidate, better) <= 0.5 for better in kept):
            kept.append(candidate)
    return kept


def _shared(one: Candidate, other: Candidate) -> float:
    smaller = min(one.side, other.side)
    reach = (one.side + other.side) / 2
    overlaps = (min(smaller, max(0.0, reach - abs(a - b))) for a, b in zip(one.centre, other.centre, strict=True))
    return math.prod(overlaps) / smaller**2
