"""Fit the closed-form Gaussian under the embedded prior: linear algebra, no gradient."""

from __future__ import annotations

import numpy as np
import torch

from faceprior.priors.gaussian import GaussianDenoiser, fold, haar
from faceprior.priors.residual_unet import GaussianResidualUNet
from faceprior.training.shards import PackedFaces

_CHUNK = 512
_OVERSAMPLE = 32  # extra directions of the randomised SVD (Halko et al. 2011)


@torch.no_grad()
def fit_gaussian(denoiser: GaussianDenoiser, faces: PackedFaces, weights: torch.Tensor) -> None:
    """Fit the mean, the principal components and the per-position variances to weighted faces, in place.

    Every face counts together with its mirror image, which is what makes symmetric and antisymmetric components
    separate exactly.
    """
    weights = weights.float()
    means = torch.empty(len(faces), *denoiser.mean.shape)
    detail_power = torch.zeros_like(denoiser.detail_std)
    for start in range(0, len(faces), _CHUNK):
        chunk = slice(start, min(start + _CHUNK, len(faces)))
        means[chunk], details = haar(faces.batch(range(chunk.start, chunk.stop)))
        power = torch.einsum("n,nchw->chw", weights[chunk], details**2)
        detail_power += (power + power.flip(-1)) / 2
    mean = torch.einsum("n,nchw->chw", weights, means)
    mean = (mean + mean.flip(-1)) / 2
    denoiser.mean.copy_(mean)
    denoiser.detail_std.copy_(detail_power.sqrt())

    rank = denoiser.components.shape[1]
    halves = fold(means - mean) * weights.sqrt().view(1, -1, 1)  # (2, N, D)
    del means
    for half, rows in enumerate(halves):
        power = (rows**2).sum(0)
        width = min(rank + _OVERSAMPLE, *rows.shape)
        _, singular, directions = torch.svd_lowrank(rows, q=width, niter=3)
        kept = min(rank, width)
        components, std = directions[:, :kept].T, singular[:kept]
        denoiser.components[half].zero_()[:kept] = components
        denoiser.component_std[half].zero_()[:kept] = std
        explained = (components**2 * (std**2)[:, None]).sum(0)
        # half precision must hold it, and a gain needs some variance to divide by
        denoiser.remainder_std[half] = (power - explained).clamp(min=1e-6).sqrt()


@torch.no_grad()
def measure_error_std(
    network: GaussianResidualUNet,
    faces: PackedFaces,
    weights: torch.Tensor,
    *,
    samples: int = 512,
    seed: int = 0,
) -> None:
    """Set s_t to the root mean square error of the Gaussian estimate at every step t, in place.

    Measured at 33 steps on `samples` drawn faces, interpolated linearly in t between them.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(weights, min(samples, len(faces)), replacement=False, generator=generator)
    x0 = faces.batch(drawn.tolist())
    noise = torch.randn(x0.shape, generator=generator)
    steps = network.error_std.numel()
    knots = torch.linspace(0, steps - 1, 33).round().long().unique()
    errors = []
    for t in knots:
        alphas_cumprod = network.alphas_cumprod[t].float().view(1, 1, 1, 1)
        x_t = alphas_cumprod.sqrt() * x0 + (1 - alphas_cumprod).sqrt() * noise
        estimate = torch.cat(
            [network.gaussian(part, alphas_cumprod.expand(len(part), 1, 1, 1)) for part in x_t.split(128)]
        )
        errors.append((estimate - x0).square().mean().sqrt())
    network.error_std.copy_(torch.from_numpy(np.interp(np.arange(steps), knots, torch.stack(errors))))
