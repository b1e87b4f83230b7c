"""Texture: how much fine detail a face has beside sharp ones, and whether a grid of two pixels stands in it.

Both come from the power spectrum of luma (ITU-R BT.601) under a Hann window, so that borders of the picture add
nothing.
"""

from __future__ import annotations

import torch

OCTAVES = (4, 8, 16, 32, 64)
"""Lower ends of the measured octaves, in cycles a face; a face of side R has those that end at R/2."""

_LUMA = (0.299, 0.587, 0.114)
_SEEN = (1 / 127.5) ** 2
"""Power of white noise of one grey level of 255: what lies below cannot be seen, and counts as no texture."""

_LINE, _NEAR, _ALONG = 1 / 64, (1 / 32, 7 / 64), 5 / 64
"""Of the side: how far from the Nyquist frequency the grid stands, what it is compared with, and its width."""

_SHARP_GRID = 0.683
"""Power near the Nyquist frequency over that a little below, the mean of 512 sharp faces (docs/benchmark.md)."""


def octave_power(images: torch.Tensor) -> torch.Tensor:
    """Power of luma in octaves of radial frequency, 4–8, 8–16, … cycles a face, in dB.

    (B, 3, R, R) in [-1, 1], R at least 16 → (B, number of `OCTAVES` that end at R/2 or below).
    """
    power, down, across = _spectrum(images)
    radius = (down.square() + across.square()).sqrt()
    octaves = [(radius >= low) & (radius < 2 * low) for low in OCTAVES if 4 * low <= images.shape[-1]]
    return 10 * torch.stack([power[:, octave].mean(1) for octave in octaves], dim=1).log10()


def texture_power(images: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Power in octaves against sharp faces: 0 dB is as much texture as theirs, −20 dB a hundredth of its power.

    Images are (B, 3, R, R), the sharp faces, whose mean in dB is 0, (M, 3, R, R); returns (B, octaves), see
    `octave_power`. Its mean over a set compares the two sets.
    """
    return octave_power(images) - octave_power(reference).mean(0)


def grid_excess(images: torch.Tensor) -> torch.Tensor:
    """How much a grid of two pixels stands out: power at the Nyquist frequency over that a little below.

    What repeats every two pixels, as a mask of stride 2 or a doubling of the side may leave it, has its power around
    (R/2, 0), (0, R/2) and (R/2, R/2), and is compared with lower frequencies in the same directions. It is scaled so
    that sharp faces have 1 on average (0.8 to 1.3 by where they come from). A smooth picture has less, white noise up
    to 1.5 (it does not fall towards the Nyquist frequency, as pictures do), a grid of one grey level in 255 about 4.

    Args:
        images: (B, 3, R, R) in [-1, 1], R at least 32.

    Returns:
        (B,); 1 is none.
    """
    power, down, across = _spectrum(images)
    side = images.shape[-1]
    nyquist, width = side / 2, _ALONG * side

    def band(frequency: torch.Tensor, nearest: float, farthest: float) -> torch.Tensor:
        return (frequency >= nyquist - farthest * side) & (frequency < nyquist - nearest * side)

    at_down, at_across = (band(own, -1.0, _LINE) for own in (down, across))
    grid = (at_across & (down <= width)) | (at_down & (across <= width)) | (at_down & at_across)
    near = (band(across, *_NEAR) & (down <= width)) | (band(down, *_NEAR) & (across <= width))
    ratio = (power[:, grid].mean(1) + _SHARP_GRID * _SEEN) / (power[:, near].mean(1) + _SEEN)
    return ratio / _SHARP_GRID


def luma(images: torch.Tensor) -> torch.Tensor:
    """Luma of RGB, (B, 3, H, W) → (B, H, W), float64 on the CPU, on the same scale."""
    return torch.einsum("c,bchw->bhw", torch.tensor(_LUMA, dtype=torch.float64), images.cpu().double())


def _spectrum(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Power of luma, (B, R, R/2 + 1), 1 a pixel's variance for white noise; its frequencies, in cycles a face."""
    grey = luma(images)
    side = grey.shape[-1]
    window = torch.hann_window(side, dtype=torch.float64)
    window = window[:, None] * window
    centred = grey - (grey * window).sum((1, 2), keepdim=True) / window.sum()
    power = torch.fft.rfft2(centred * window).abs().square() / window.square().sum()
    down = torch.fft.fftfreq(side, 1 / side, dtype=torch.float64).abs()[:, None].expand_as(power[0])
    across = torch.fft.rfftfreq(side, 1 / side, dtype=torch.float64)[None].expand_as(power[0])
    return power, down, across
