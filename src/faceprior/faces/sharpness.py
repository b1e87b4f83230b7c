"""How many pixels of a face carry detail: its effective resolution.

The power spectrum of a sharp face falls as a power of the frequency; blur, reduction and compression cut it off. What
film, sensor, scanner or printing screen add on top does not fall like that. The spectrum of the aligned face is
fitted as

    P(f) = A f^-β · exp(−2 (f / f_c)³) + N · exp(−(f / f_n)²)

with the contrast A, the cut-off f_c, and the power N and fineness f_n of the noise free. What else looks like detail
is told apart in the picture: the edges of blocks, which repeat at equal distances, the dots of a print, and writing,
which leaves most of a face as blurred as it was. docs/photos.md says how far it can be trusted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from faceprior.faces.alignment import corners, cut_out, magnification
from faceprior.faces.prints import laid_over, power_spectrum, without_dots
from faceprior.images import spread_under

_SLOPE = 3.2  # β of sharp faces
_CONTRAST, _CONTRAST_STD = 6.2, 2.2  # log A of sharp faces, cycles a side and 8-bit levels
_PIXELS_PER_CYCLE = 1.53  # from f_c to the side to which a face was reduced
_ROUNDING = 1 / 12  # variance of rounding to 8 bits
_FIRST = 1.5  # lowest frequency of the fit, cycles a side: below it stands the lighting
_LOWEST = 3.0  # lowest f_c, cycles a side
_OUTLIER = 2.0  # difference of logarithms from which a frequency counts no more
_FINENESS = (np.inf, 0.45, 0.33, 0.25, 0.18)  # f_n, cycles a pixel; the first is white noise

_PART, _PARTS = 0.33, 5  # a part of the face: its side in sides of the face, and their number across
_ALIKE = 1.25  # factor within which parts have the same effective resolution
_SPEAK = 8  # parts that must agree to speak for the face against what the whole of it shows
_LAID_OVER = 0.5  # share of the whole's effective resolution below which they do

_COMB = 0.6  # share of a picture's steps at equal distances from which they are edges of blocks
_MOST_BLOCKS = 48  # pixels a side
_FEWEST_PIXELS = 32  # a side, to look for blocks in


@dataclass(frozen=True, eq=False)
class MeasuredFace:
    """An aligned face as a photograph shows it, without the dots and the writing of a print.

    Attributes:
        aligned: RGB, as large as in the photograph, from 8 pixels a side to 2 R.
        effective_side: how many pixels across it would hold all its detail; at most its size in the photograph.
        laid_over: where writing is, (n, n), from 0 to 1; None where there is none.
    """

    aligned: Image.Image
    effective_side: float
    laid_over: NDArray[np.float32] | None = None


def measure_face(photo: Image.Image, transform: NDArray[np.float64], resolution: int) -> MeasuredFace:
    """Cut a face out of a photograph and measure how much detail of it there is.

    Args:
        photo: RGB.
        transform: 2×3, pixels of the photo to the aligned square of side `resolution`.
        resolution: of the networks, R.
    """
    size = resolution / magnification(transform)  # of the aligned square, in pixels of the photo
    places = corners(transform, resolution).clip(0, photo.size)
    low, high = np.floor(places.min(0)), np.ceil(places.max(0))
    box = (int(low[0]), int(low[1]), int(high[0]), int(high[1]))
    around = photo.crop(box)
    if (plain := without_dots(around)) is not around:
        photo = photo.copy()
        photo.paste(plain, box)
    side = int(np.clip(round(size), 8, 2 * resolution))
    aligned = cut_out(photo, transform * (side / resolution), side)
    blocks = block_size(around)
    if blocks > 1:  # they are its pixels
        small = photo.resize([max(1, round(whole / blocks)) for whole in photo.size], Image.Resampling.NEAREST)
        to_photo = np.diag([photo.width / small.width, photo.height / small.height, 1])
        return MeasuredFace(aligned, measure_face(small, transform @ to_photo, resolution).effective_side)
    grey = np.asarray(aligned.convert("L"), np.float64)
    detail = _fit(grey)
    behind = _under_writing(grey, _LAID_OVER * detail)
    over = laid_over(aligned, behind or detail, broad=behind is None)
    if over is None:
        return MeasuredFace(aligned, min(size, detail))
    filled = Image.fromarray(spread_under(np.asarray(aligned), 1 - over, side))
    return MeasuredFace(filled, min(size, behind or detail), over)


def _under_writing(grey: NDArray[np.float64], limit: float) -> float | None:
    """The effective resolution below `limit` that many parts of a face share: blur does not vary, sharp faces do."""
    side = len(grey)
    part = round(_PART * side)
    if limit < 8 or part < 8:
        return None
    starts = np.linspace(0, side - part, _PARTS).round().astype(int)
    parts = (_fit(grey[y : y + part, x : x + part], steps=32) for y in starts for x in starts)
    blind = 1.1 * _PIXELS_PER_CYCLE * _LOWEST  # a part that is all shade says nothing
    low = np.sort([own * side / part for own in parts if own > blind and own * side / part < limit])
    alike = [low[(low >= least) & (low < _ALIKE * least)] for least in low]
    most = max(alike, key=len, default=low)
    return float(np.median(most)) if len(most) >= _SPEAK else None


def block_size(picture: Image.Image) -> float:
    """Return the side of the blocks of one colour that a picture is made of, in pixels; 1 where there are none.

    Pictures that were enlarged without interpolation (nearest neighbour, box) step at equal distances only.
    """
    if min(picture.size) < _FEWEST_PIXELS:
        return 1.0
    grey = np.asarray(picture.convert("L"), np.float64)
    across, down = (_period((np.diff(grey, axis=axis) ** 2).mean(1 - axis)) for axis in (1, 0))
    return float(np.sqrt(across * down)) if max(across, down) < 1.1 * min(across, down) else 1.0


def _period(steps: NDArray[np.float64]) -> float:
    """The longest period that `steps` between neighbouring columns keep to, 1 if none."""
    steps = np.clip(steps - np.quantile(steps, 0.25), 0, None)  # noise is everywhere
    if not steps.any():
        return 1.0
    frequencies = np.fft.rfftfreq(4 * len(steps))
    lines = abs(np.fft.rfft(steps, 4 * len(steps))) / steps.sum()
    kept = np.flatnonzero((lines > _COMB) & (frequencies > 1 / min(_MOST_BLOCKS, len(steps) / 8)))
    if not len(kept):
        return 1.0
    lowest = kept[frequencies[kept] <= frequencies[kept].min() * 1.3]  # the line itself, not its flank
    return float(1 / frequencies[lowest[lines[lowest].argmax()]])


def _fit(grey: NDArray[np.float64], steps: int = 60) -> float:
    side = len(grey)
    f, power = _spectrum(grey)
    rounding = _ROUNDING / side**2
    measured = np.log(power + rounding)
    weight = np.gradient(np.log(f))  # each octave counts alike
    weight /= weight.sum()
    cut_offs = np.geomspace(_LOWEST, side, steps)
    contrasts = _CONTRAST + _CONTRAST_STD * np.linspace(-1.2, 1.2, 1 + 2 * (steps // 15))
    levels = rounding * np.append(0, np.geomspace(1, max(2.0, power[f > side / 6].max() / rounding), steps // 4))
    fineness = np.exp(-((f / side / np.array(_FINENESS)[:, None]) ** 2))
    noise = (levels[:, None, None] * fineness + rounding).reshape(-1, len(f))  # (N and f_n, f)
    signal = np.exp(contrasts[:, None, None] - _SLOPE * np.log(f) - 2 * (f / cut_offs[:, None]) ** 3)  # (A, f_c, f)
    model = np.log((signal[:, :, None] + noise).astype(np.float32))
    misfit = np.minimum(abs(model - measured.astype(np.float32)), _OUTLIER) @ weight.astype(np.float32)
    unlikely = 0.25 * ((contrasts - _CONTRAST) / _CONTRAST_STD) ** 2
    best = np.unravel_index((misfit + unlikely[:, None, None]).argmin(), misfit.shape)
    return min(float(side), _PIXELS_PER_CYCLE * float(cut_offs[best[1]]))


def _spectrum(grey: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Frequencies, cycles a side, and the mean power around them, without what the picture's edges add to it."""
    side = len(grey)
    ring, count, centres = _rings(side)
    power = power_spectrum(grey) / side**2
    return centres, np.bincount(ring, power.ravel())[1 : len(centres) + 1] / count


@lru_cache(maxsize=8)
def _rings(side: int) -> tuple[NDArray[Any], ...]:
    """What spectra of one side share: the ring of each place, how many places a ring has, and its frequency."""
    frequencies = np.fft.fftfreq(side) * side
    radius = np.hypot(frequencies[:, None], frequencies).ravel()
    edges = [_FIRST]
    while edges[-1] < 0.7 * side:
        edges.append(max(edges[-1] + 1, edges[-1] * 1.08))
    ring, rings = np.digitize(radius, edges), slice(1, len(edges))
    count, sums = np.bincount(ring)[rings], np.bincount(ring, np.log(np.maximum(radius, 1)))[rings]
    return ring, count, np.exp(sums / count)
