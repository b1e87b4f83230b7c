"""Giving a face the texture that an estimate lacks.

The expectation m of a face is too smooth: at each frequency it lacks the power of its error. To draw that power at
random costs as much fidelity again; to scale what is known costs the least that a spectrum can be had for: it is the
optimal transport between Gaussians (Freirich, Michaeli and Meir, NeurIPS 2021, arXiv 2107.02555).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch

from faceprior.corrector import Correction
from faceprior.networks import cosine_transform

_LOWEST = 4  # cycles a face up to which nothing is scaled
_NOTHING = 1e-12  # power of a picture without any


def with_texture(samples: torch.Tensor, expected: Correction, texture: float) -> torch.Tensor:
    """Scale the spectra of samples x around the expectation m to the power that faces have.

    A gain for each half octave raises its power to that of m plus what m lacks: this has the spectrum of x − m, and
    for an amount the geometric mean of what x deviates from m, which is too little, and what the corrector expects m
    to be wrong by, most of which is coarser, times `texture`. A pixel of which it is surer than of the whole face is
    raised the less, as its error is to the mean: what is flat stays flat.

    Args:
        samples: x, (B, 3, R, R) in [-1, 1].
        expected: m with its expected error; without that nothing is scaled.
        texture: factor of the power that is missing, at least 0; 0 scales nothing.

    Returns:
        (B, 3, R, R).
    """
    if not texture or expected.log_error is None:
        return samples
    away = samples - expected.x0
    transform, octaves = _spectrum(samples.shape[-1], samples.device)

    def power(spectra: torch.Tensor) -> torch.Tensor:
        return spectra.square().mean(1).flatten(1) @ octaves.T / octaves.sum(1)  # (B, K)

    error = expected.log_error.exp()
    mean_error = error.mean((1, 2, 3), keepdim=True)
    ratio = mean_error.flatten() / away.square().mean((1, 2, 3)).clamp(min=_NOTHING)
    spectra = transform @ samples @ transform.T
    missing = texture * ratio.sqrt()[:, None] * power(transform @ away @ transform.T)
    wanted = power(transform @ expected.x0 @ transform.T) + missing
    gains = (wanted / power(spectra).clamp(min=_NOTHING)).clamp(min=1).sqrt().log() @ octaves  # (B, R²)
    raised = transform.T @ (gains.exp().view(-1, 1, *spectra.shape[2:]) * spectra) @ transform
    return torch.lerp(samples, raised, (error / mean_error).clamp(max=1))


class _Spectrum(NamedTuple):
    """A cosine transform, (R, R), and the weights of half octaves, (K, R²), which sum to 1 at each frequency."""

    transform: torch.Tensor
    octaves: torch.Tensor


@lru_cache(maxsize=8)
@torch.inference_mode(mode=False)  # as for the grid's filter
def _spectrum(side: int, device: torch.device) -> _Spectrum:
    cycles = torch.arange(side, dtype=torch.float64) / 2
    radius = (cycles[:, None].square() + cycles.square()).sqrt().flatten()
    place = 2 * (radius.clamp(min=_LOWEST) / _LOWEST).log2()
    count = math.floor(place.max())
    centres = torch.arange(1, count + 1, dtype=torch.float64)[:, None]
    octaves = (1 - (place.clamp(max=count) - centres).abs()).clamp(min=0)
    return _Spectrum(cosine_transform(side).float().to(device), octaves.float().to(device))
