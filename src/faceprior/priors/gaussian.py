"""The closed-form denoiser of a Gaussian fitted to aligned faces.

Aligned faces are so regular that the posterior mean under a fitted Gaussian, a linear map, already carries most
of what a network has to learn at high noise levels. The Gaussian lives in an orthonormal basis that makes its
covariance nearly diagonal: one Haar level splits the image into half-resolution means and details; means are
folded into a mirror-symmetric and an antisymmetric half (faces are, so their principal components are one or the
other, at half the storage); each half is described by principal components plus a per-position remainder, the
details by a per-position variance.
"""

from __future__ import annotations

import torch
from torch import nn


def haar(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One orthonormal Haar level: (B, C, H, W) → means (B, C, H/2, W/2) and details (B, 3C, H/2, W/2)."""
    top_left, top_right = images[..., ::2, ::2], images[..., ::2, 1::2]
    bottom_left, bottom_right = images[..., 1::2, ::2], images[..., 1::2, 1::2]
    means = (top_left + top_right + bottom_left + bottom_right) / 2
    horizontal = (top_left - top_right + bottom_left - bottom_right) / 2
    vertical = (top_left + top_right - bottom_left - bottom_right) / 2
    diagonal = (top_left - top_right - bottom_left + bottom_right) / 2
    return means, torch.cat([horizontal, vertical, diagonal], dim=1)


def inverse_haar(means: torch.Tensor, details: torch.Tensor) -> torch.Tensor:
    """Inverse of `haar`."""
    horizontal, vertical, diagonal = details.chunk(3, dim=1)
    batch, channels, height, width = means.shape
    images = means.new_empty(batch, channels, 2 * height, 2 * width)
    images[..., ::2, ::2] = (means + horizontal + vertical + diagonal) / 2
    images[..., ::2, 1::2] = (means - horizontal + vertical - diagonal) / 2
    images[..., 1::2, ::2] = (means + horizontal - vertical - diagonal) / 2
    images[..., 1::2, 1::2] = (means - horizontal - vertical + diagonal) / 2
    return images


def fold(images: torch.Tensor) -> torch.Tensor:
    """Orthonormal mirror split: (B, C, H, W) → (2, B, C·H·W/2), symmetric part first."""
    left, right = images.chunk(2, dim=-1)
    right = right.flip(-1)
    return torch.stack([left + right, left - right]).flatten(2) / 2**0.5


def unfold(halves: torch.Tensor, channels: int, height: int) -> torch.Tensor:
    """Inverse of `fold`."""
    symmetric, antisymmetric = halves.view(2, halves.shape[1], channels, height, -1) / 2**0.5
    return torch.cat([symmetric + antisymmetric, (symmetric - antisymmetric).flip(-1)], dim=-1)


class GaussianDenoiser(nn.Module):
    """E[x0 | x_t] for x0 from a fitted Gaussian, by Wiener filtering in its own basis.

    Buffers are standard deviations, not variances, so that half precision can store them.

    Args:
        sample_size: side R of the images, divisible by 4.
        rank: principal components kept in each mirror half.
        channels: image channels C.
    """

    mean: torch.Tensor  # (C, R/2, R/2), of the Haar means
    components: torch.Tensor  # (2, rank, C·R/2·R/4), orthonormal rows
    component_std: torch.Tensor  # (2, rank)
    remainder_std: torch.Tensor  # (2, C·R/2·R/4)
    detail_std: torch.Tensor  # (3C, R/2, R/2)

    def __init__(self, sample_size: int, rank: int, channels: int = 3) -> None:
        super().__init__()
        half = sample_size // 2
        folded = channels * half * half // 2
        self.register_buffer("mean", torch.zeros(channels, half, half))
        self.register_buffer("components", torch.zeros(2, rank, folded))
        self.register_buffer("component_std", torch.ones(2, rank))
        self.register_buffer("remainder_std", torch.ones(2, folded))
        self.register_buffer("detail_std", torch.ones(3 * channels, half, half))

    def forward(self, x_t: torch.Tensor, alphas_cumprod: torch.Tensor) -> torch.Tensor:
        """Return E[x0 | x_t], float32.

        Args:
            x_t: noisy images, (B, C, R, R).
            alphas_cumprod: ᾱ_t of each, (B, 1, 1, 1).
        """
        with torch.autocast(x_t.device.type, enabled=False):
            return self._wiener(x_t, alphas_cumprod)

    def _wiener(self, x_t: torch.Tensor, alphas_cumprod: torch.Tensor) -> torch.Tensor:
        signal, noise_variance = alphas_cumprod.sqrt(), 1.0 - alphas_cumprod

        def gain(std: torch.Tensor, signal: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
            variance = std**2
            return signal * variance / (signal**2 * variance + noise_variance)

        means, details = haar(x_t.float())
        mean, components = self.mean, self.components
        halves = fold(means - signal * mean)  # (2, B, D)
        scores = halves @ components.mT  # (2, B, rank)
        remainder = halves - scores @ components
        levels = signal.view(1, -1, 1), noise_variance.view(1, -1, 1)
        denoised = (scores * gain(self.component_std[:, None], *levels)) @ components
        denoised += remainder * gain(self.remainder_std[:, None], *levels)
        means = unfold(denoised, mean.shape[0], mean.shape[1]) + mean
        return inverse_haar(means, details * gain(self.detail_std, signal, noise_variance))
