"""How sure a result is: the half-width of an interval that holds the true pixel with a probability of 90 %.

The corrector predicts m = E[x | y] and the expected squared error e of m. For any result r that is made from y alone,
E[(r − x)² | y] = e + (r − m)²: what is not known of the face, and how far the result has gone beyond the expectation.
Without a corrector two samples of the posterior are as far from each other as one is from the truth, so the samples'
variance v stands for it: E[(r − x)² | y] = 2 v. The root of either is a scale, which split conformal prediction
(Angelopoulos et al. 2022, Image-to-Image Regression with Distribution-Free Uncertainty) turns into a half-width: it
is multiplied by the factor that makes it hold for 90 % of the pixels of held-out faces, from the card.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

import torch

from faceprior.corrector import Correction

PROBABILITY = 0.9
GAUSSIAN_FACTOR = 1.645
"""The factor for weights whose card has none: right if errors were Gaussian."""


def error_scale(result: torch.Tensor, expected: Correction | None, samples: torch.Tensor) -> torch.Tensor | None:
    """Root of the expected squared error of a result, mean over channels.

    Args:
        result: (3, R, R) in [-1, 1].
        expected: the corrector's expectation of a batch of one, with its error; None without a corrector.
        samples: all samples of the face, (N, 3, R, R).

    Returns:
        (R, R), for images in [-1, 1]; None where nothing is known: no corrector that doubts, and one sample.
    """
    if expected is not None and expected.log_error is not None:
        beyond = (result - expected.x0[0].to(result)).square().mean(0)
        return (expected.log_error[0, 0].to(result).exp() + beyond).sqrt()
    if len(samples) > 1:
        return (2 * samples.var(0).mean(0)).sqrt()
    return None


def half_width(scale: torch.Tensor, calibration: Mapping[str, float], reduction: float) -> torch.Tensor:
    """Turn an error scale into the half-width of a 90 % interval.

    Args:
        scale: `error_scale`, (R, R).
        calibration: of the card: factors by name, "x4", "x8" … for clean faces that were reduced so far, and
            "damaged" for faces that come at the prior's own resolution.
        reduction: R/n of the face.

    Returns:
        (R, R), on the scale of [0, 1] pixel values, at most 1.
    """
    return (factor_of(calibration, reduction) * scale / 2).clamp(max=1)


def factor_of(calibration: Mapping[str, float], reduction: float) -> float:
    """Return the factor for a face of side R/reduction, between the card's scales interpolated in the logarithm."""
    if reduction < 2 and "damaged" in calibration:
        return calibration["damaged"]
    known = sorted((float(name[1:]), factor) for name, factor in calibration.items() if name.startswith("x"))
    if not known:
        return calibration.get("damaged", GAUSSIAN_FACTOR)
    if reduction <= known[0][0]:
        return known[0][1]
    for (low, first), (high, second) in pairwise(known):
        if reduction <= high:
            share = math.log(reduction / low) / math.log(high / low)
            return first + share * (second - first)
    return known[-1][1]


def conformal_factor(errors: torch.Tensor, scales: torch.Tensor) -> float:
    """Return the smallest factor with which `PROBABILITY` of held-out pixels lie inside their intervals.

    Args:
        errors: root of the mean squared error over channels of each pixel, (faces, pixels).
        scales: `error_scale` of each, the same shape.
    """
    ratios = (errors / scales.clamp(min=1e-6)).flatten().sort().values
    rank = math.ceil(PROBABILITY * (len(ratios) + 1))
    return float(ratios[min(rank, len(ratios)) - 1])
