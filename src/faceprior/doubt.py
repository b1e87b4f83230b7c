"""How sure a result is: the half-width of an interval that holds the true pixel with a probability of 90 %.

The corrector predicts m = E[x | y] and the expected squared error e of m. For any result r that is made from y alone,
E[(r − x)² | y] = e + (r − m)²: what is not known of the face, and how far the result has gone beyond the expectation.
Without a corrector two samples of the posterior are as far from each other as one is from the truth, so the samples'
variance v stands for it: E[(r − x)² | y] = 2 v. The root of either is a scale, which split conformal prediction
(Angelopoulos et al. 2022, Image-to-Image Regression with Distribution-Free Uncertainty) turns into a half-width: it
is multiplied by the factor that makes it hold for 90 % of the pixels of held-out faces. Pixels of like scale have a
factor of their own (Mondrian conformal prediction, Vovk et al. 2003), so that eyes, of which little is known, are
promised no more than skin.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from faceprior.corrector import Correction

PROBABILITY = 0.9
GAUSSIAN_FACTOR = 1.645
"""The factor for weights whose card has none: right if errors were Gaussian."""

Calibration = Mapping[str, Sequence[tuple[float, float]]]

_LEAST = 1e-6  # a scale of nothing known to be wrong


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


def half_width(scale: torch.Tensor, calibration: Calibration, reduction: float) -> torch.Tensor:
    """Turn an error scale into the half-width of a 90 % interval.

    Args:
        scale: `error_scale`, (R, R).
        calibration: of the card: by name, "x4", "x8" … for clean faces that were reduced so far, and "damaged" for
            faces that come at the prior's own resolution, the factors at some scales (`conformal_factors`). Between
            the scales, and between the reductions, they are interpolated in the logarithm.
        reduction: R/n of the face.

    Returns:
        (R, R), on the scale of [0, 1] pixel values, at most 1.
    """
    known = sorted((math.log(float(name[1:])), name) for name in calibration if name.startswith("x"))
    if "damaged" in calibration and (reduction < 2 or not known):
        factors = _factors(scale, calibration["damaged"])
    elif not known:
        factors = torch.full_like(scale, GAUSSIAN_FACTOR)
    else:
        place = np.interp(math.log(reduction), [level for level, _ in known], range(len(known)))
        below, above = (_factors(scale, calibration[known[round_(place)][1]]) for round_ in (math.floor, math.ceil))
        factors = torch.lerp(below, above, place % 1)
    return (factors * scale / 2).clamp(max=1)


def conformal_factors(errors: torch.Tensor, scales: torch.Tensor, groups: int = 10) -> list[tuple[float, float]]:
    """Return scales and the smallest factors with which `PROBABILITY` of the pixels around them lie inside.

    Args:
        errors: root of the mean squared error over channels of each held-out pixel, any shape.
        scales: `error_scale` of each, the same shape.
        groups: how many groups of pixels of like scale there are, of the same size.
    """
    order = scales.flatten().argsort()
    found = []
    for group in order.tensor_split(groups):
        own = scales.flatten()[group].clamp(min=_LEAST)
        ratios = (errors.flatten()[group] / own).sort().values
        rank = math.ceil(PROBABILITY * (len(ratios) + 1))
        found.append((float(own.median()), float(ratios[min(rank, len(ratios)) - 1])))
    return found


def _factors(scale: torch.Tensor, known: Sequence[tuple[float, float]]) -> torch.Tensor:
    scales, factors = np.array(known).T
    found = np.interp(scale.clamp(min=_LEAST).log().cpu().numpy(), np.log(scales), factors)
    return torch.from_numpy(found).to(scale)
