"""The one interval of every figure: the bootstrap over faces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_DRAWS, _SEED = 2000, 0
_COVERED = (0.025, 0.975)
_AT_ONCE = 4_000_000  # indices that are drawn together, for memory


@dataclass(frozen=True)
class Interval:
    """A figure of so many faces, and the ends of its 95 % bootstrap interval; the figure itself for a single face."""

    mean: float
    low: float
    high: float
    faces: int


def bootstrap(values: Sequence[float]) -> Interval:
    """Mean of at least one value, one for each face, with its 95 % percentile interval (Efron 1979)."""
    own = np.asarray(values, np.float64)
    generator = np.random.default_rng(_SEED)
    each = max(1, _AT_ONCE // len(own))
    parts = [
        own[generator.integers(len(own), size=(min(each, _DRAWS - first), len(own)))].mean(1)
        for first in range(0, _DRAWS, each)
    ]
    return _interval(float(own.mean()), np.concatenate(parts), len(own))


def bootstrap_pairs(values: NDArray[np.float64]) -> Interval:
    """Mean over all pairs of faces, (N, N), where whole faces are drawn anew: a row and its column together."""
    count = len(values)
    generator = np.random.default_rng(_SEED)
    weights = generator.multinomial(count, np.full(count, 1 / count), size=_DRAWS) / count
    return _interval(float(values.mean()), ((weights @ values) * weights).sum(1), count)


def _interval(value: float, resampled: NDArray[np.float64], faces: int) -> Interval:
    low, high = np.quantile(resampled, _COVERED)
    return Interval(value, float(low), float(high), faces)
