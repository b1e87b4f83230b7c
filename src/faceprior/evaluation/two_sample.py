"""The classifier two-sample test (Lopez-Paz & Oquab 2017): can restored faces be told from real ones?"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from faceprior.errors import DataError
from faceprior.evaluation.intervals import Interval, bootstrap_pairs
from faceprior.evaluation.texture import luma
from faceprior.images import to_uint8
from faceprior.networks import cosine_transform

MIN_FACES = 10

_PATCH, _APART = 8, 16  # pixels: side of a patch, and distance between two
_SEEN = (2 / 127.5) ** 2  # power below which a coefficient counts as nothing: two grey levels of 255
_FOLDS, _RIDGE, _NEWTON_STEPS = 5, 10.0, 30


def two_sample_auc(restored: torch.Tensor, real: torch.Tensor) -> Interval:
    """How well a patch of a restored face can be told from one of a real face: area under the ROC curve.

    A logistic regression sees the log power of the 63 cosine transform coefficients of a patch's luma, 8×8 pixels, so
    it knows texture and no face. It is trained on four fifths of the faces and judges the others, five times.
    Patches, since whole faces are told apart without fail long before a person sees the difference.
    Both sets are (N, 3, R, R) in [-1, 1], N at least 10, the real faces those that were restored, or N others.

    Returns:
        ½ where nothing tells them apart, up to 1; the interval is of faces drawn anew, whose scores stay as they are.

    Raises:
        DataError: there are too few faces, or not as many of both.
    """
    if len(restored) != len(real) or len(real) < MIN_FACES:
        raise DataError(
            f"a two-sample test needs {MIN_FACES} or more faces, as many restored as real; there are {len(restored)}"
            f" and {len(real)}"
        )
    sets = torch.stack([_features(restored), _features(real)])  # (2, N, P, D)
    scores = sets.new_empty(sets.shape[:3])
    folds = torch.arange(len(real)) % _FOLDS
    for fold in range(_FOLDS):
        known = sets[:, folds != fold]
        mean, scale = known.mean((0, 1, 2)), known.std((0, 1, 2)) + 1e-9
        weights = _fit(((known - mean) / scale).flatten(1, 2))
        scores[:, folds == fold] = ((sets[:, folds == fold] - mean) / scale) @ weights[:-1] + weights[-1]
    return bootstrap_pairs(_wins(*scores).numpy())


def _features(faces: torch.Tensor) -> torch.Tensor:
    """Log power of each patch's coefficients but the mean's: (N, 3, R, R) → (N, P, 63)."""
    patches = (luma(to_uint8(faces)) / 127.5).unfold(1, _PATCH, _APART).unfold(2, _PATCH, _APART).flatten(1, 2)
    cosines = cosine_transform(_PATCH)
    power = (cosines @ patches @ cosines.T).square()
    return (power + _SEEN).log().flatten(2)[..., 1:]


def _fit(sets: torch.Tensor) -> torch.Tensor:
    """Weights of a ridge logistic regression that is positive for the first of two sets, (2, n, D) → (D + 1,)."""
    rows = F.pad(sets.flatten(0, 1), (0, 1), value=1.0)
    target = sets.new_tensor([1.0, 0.0]).repeat_interleave(sets.shape[1])
    ridge = torch.full_like(rows[0], _RIDGE)
    ridge[-1] = 1e-6
    weights = torch.zeros_like(rows[0])
    for _ in range(_NEWTON_STEPS):
        chance = torch.sigmoid(rows @ weights)
        curvature = (rows * (chance * (1 - chance)).clamp(min=1e-6)[:, None]).T @ rows + ridge.diag()
        step = torch.linalg.solve(curvature, rows.T @ (chance - target) + ridge * weights)
        weights = weights - step
        if step.abs().max() < 1e-6:
            break
    return weights


def _wins(restored: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """How often a patch of restored face i scores above one of real face j, ties half: (N, P), (N, P) → (N, N)."""
    shares = []
    for own in real.sort(dim=1).values:
        below = torch.searchsorted(own, restored) + torch.searchsorted(own, restored, right=True)
        shares.append(below.double().mean(1) / (2 * len(own)))
    return torch.stack(shares, dim=1)
