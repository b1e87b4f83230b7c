"""How many pixels of a face carry detail: its effective resolution.

The power spectrum of a sharp face falls as a power of the frequency; blur, reduction and compression cut it off. The
spectrum of the aligned face is fitted as

    P(f) = A f^-β · exp(−2 (f / f_c)³) + N

with the contrast A and the cut-off f_c free and the noise N seen where the rest has died away: in the corners of the
spectrum. docs/photos.md says how it was calibrated, and how far it can be trusted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SLOPE = 3.2  # β of sharp faces
_CONTRAST, _CONTRAST_STD = 6.2, 2.2  # log A of sharp faces, cycles a side and 8-bit levels
_PIXELS_PER_CYCLE = 1.47  # from f_c to the side to which a face was reduced
_ROUNDING = 1 / 12  # variance of rounding to 8 bits
_FIRST = 2  # lowest frequency of the fit, cycles a side: below it stands the lighting
_OUTLIER = 2.0  # difference of logarithms from which a frequency counts no more


def effective_side(face: Image.Image) -> float:
    """Return how many pixels across an aligned face would hold its detail.

    Args:
        face: aligned, square, at least 8 pixels.

    Returns:
        At most the side of `face`.
    """
    side = face.width
    power = _power(np.asarray(face.convert("L"), np.float64))
    frequencies = np.fft.fftfreq(side) * side
    radius = np.hypot(frequencies[:, None], frequencies)
    rounding = _ROUNDING / side**2
    noise = np.median(power[radius > 0.55 * side]) / np.log(2) + rounding  # the median of an exponential variable
    ring = np.rint(radius).astype(int).ravel()
    rings = np.bincount(ring, power.ravel()) / np.bincount(ring)
    f = np.arange(_FIRST, side // 2 + 1)
    measured = np.log(rings[f] + rounding)
    weight = 1 / f  # each octave counts alike
    cut_offs = np.geomspace(3, side, 80)
    contrasts = _CONTRAST + _CONTRAST_STD * np.linspace(-1.2, 1.2, 25)
    signal = contrasts[:, None, None] - _SLOPE * np.log(f) - 2 * (f / cut_offs[:, None]) ** 3
    misfit = np.minimum(abs(measured - np.log(np.exp(signal) + noise)), _OUTLIER)  # (A, f_c, f)
    unlikely = 0.25 * ((contrasts - _CONTRAST) / _CONTRAST_STD) ** 2
    loss = misfit @ weight / weight.sum() + unlikely[:, None]
    cut_off = float(cut_offs[loss.argmin() % len(cut_offs)])
    return min(float(side), _PIXELS_PER_CYCLE * cut_off)


def _power(grey: NDArray[np.float64]) -> NDArray[np.float64]:
    """Power spectrum, without what the edges of the picture add to it, (side, side)."""
    window = np.hanning(len(grey) + 2)[1:-1]
    window = window[:, None] * window
    mean = (grey * window).sum() / window.sum()
    power = np.abs(np.fft.fft2((grey - mean) * window)) ** 2
    return np.asarray(power / (window**2).sum() / len(grey) ** 2, np.float64)
