"""What lies over a face: the dots that a print is made of, and writing."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

_MOST_PIXELS = 384  # a side, to look for dots in
_FEWEST_DOTS = 8  # across them
_STANDS_OUT = 300  # power of a screen's line to the median around; 60 in none of 700 faces, 1500 in prints
_LEAST_SHARE = 0.01  # of a screen's lines in a picture's power
_DOTS_BLUR = 0.55  # standard deviation that averages dots, in their distance

_BLUR = 0.35  # standard deviation that leaves what a face resolves, in the pixels that it holds
_OUTSTANDING, _LEAST_LEVELS = 5, 30  # how far writing stands out from that: in deviations of the noise, and in levels
_LEAST_WRITING = 0.01  # share of a face; half of it has sharp eyes in a smooth face
_BROAD = 0.02  # strokes of letters, in sides of the face; most scratches are narrower


def without_dots(picture: Image.Image) -> Image.Image:
    """Return a picture with the dots of its print averaged; itself where it is not made of dots."""
    distance = dot_distance(picture)
    return picture if distance is None else picture.filter(ImageFilter.GaussianBlur(_DOTS_BLUR * distance))


def dot_distance(picture: Image.Image) -> float | None:
    """Return how far the dots of a print are from each other, in pixels; None where a picture is not made of dots.

    They stand on a lattice of squares: two lines in the spectrum, at right angles, far above all else around.
    """
    side = (min(*picture.size, _MOST_PIXELS) - 1) // 2 * 2 + 1  # odd: the spectrum can be turned by a quarter
    if side < 4 * _FEWEST_DOTS:
        return None
    left, top = ((whole - side) // 2 for whole in picture.size)
    grey = np.asarray(picture.crop((left, top, left + side, top + side)).convert("L"), np.float64)
    power = np.fft.fftshift(power_spectrum(grey))
    middle, (ring, order, ends) = side // 2, _rings(side)
    usual = np.array([np.median(own) for own in np.split(power.ravel()[order], ends)[: middle + 1]])
    both = np.where((ring >= _FEWEST_DOTS) & (ring <= middle), np.minimum(power, np.rot90(power)), 0)
    above = both / np.maximum(usual, 1e-9)[np.minimum(ring, middle)]
    row, column = np.unravel_index(above.argmax(), above.shape)
    line = both[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2].sum()
    if above[row, column] < _STANDS_OUT or 4 * line < _LEAST_SHARE * power.sum():
        return None
    return float(side / np.hypot(row - middle, column - middle))


def power_spectrum(grey: NDArray[np.float64]) -> NDArray[np.float64]:
    """Power of the Fourier transform of a square picture, (n, n), without its mean; the Hann window has power 1."""
    window = _window_of(len(grey))
    return np.abs(np.fft.fft2((grey - (grey * window).sum() / window.sum()) * window)) ** 2 / (window**2).sum()


@lru_cache(maxsize=8)
def _window_of(side: int) -> NDArray[np.float64]:
    line = np.hanning(side + 2)[1:-1]
    return line[:, None] * line


@lru_cache(maxsize=4)
def _rings(side: int) -> tuple[NDArray[np.int_], NDArray[np.int_], NDArray[np.int_]]:
    """How far each place of a spectrum is from its middle, the places ordered by that, and where each ring ends."""
    y, x = np.indices((side, side)) - side // 2
    ring = np.rint(np.hypot(x, y)).astype(int)
    return ring, np.argsort(ring, axis=None), np.bincount(ring.ravel()).cumsum()[:-1]


def laid_over(face: Image.Image, effective_side: float, *, broad: bool) -> NDArray[np.float32] | None:
    """Return where something is sharper than the face behind it can be, (side, side): 1 there, 0 elsewhere.

    Args:
        face: aligned, RGB.
        effective_side: pixels across it that carry detail.
        broad: whether only broad strokes count as writing.

    Returns:
        None where there is too little for writing.
    """
    blur = _BLUR * face.width / effective_side
    smooth = face.filter(ImageFilter.GaussianBlur(blur))
    apart = np.abs(np.asarray(face, np.float32) - np.asarray(smooth, np.float32)).max(2)
    noise = 1.5 * float(np.median(apart))
    over = apart > max(_OUTSTANDING * noise, _LEAST_LEVELS)
    edges = Image.fromarray(over).convert("L")
    if broad:
        stroke = _window(_BROAD * face.width / 2)
        over = np.asarray(edges.filter(ImageFilter.MinFilter(stroke)).filter(ImageFilter.MaxFilter(stroke)))
    if (over > 0).mean() < _LEAST_WRITING:
        return None
    whole = edges.filter(ImageFilter.MaxFilter(_window(blur)))  # and what they enclose, and around them
    return np.asarray(np.asarray(whole) / 255, np.float32)


def _window(radius: float) -> int:
    """Side of a rank filter's window; Pillow ends the process where it is 1."""
    return 2 * max(1, round(radius)) + 1
