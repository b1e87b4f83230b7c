"""Fidelity: PSNR and SSIM on RGB as 8-bit pictures have it, border 0 (torchmetrics computes SSIM)."""

from __future__ import annotations

import torch

from faceprior.degradations import bicubic_downscale
from faceprior.images import resize, to_uint8

EXACT = 120.0
"""Stands for the infinite PSNR of identical pictures, in dB: JSON has no infinity, and different ones stay below."""


def psnr(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each image in dB, after rounding to uint8; identical images give infinity.

    Both are (B, 3, H, W) in [-1, 1]; returns (B,).
    """
    # every restoration needs this one, and torchmetrics takes a tenth of a cold start to import
    a, b = to_uint8(images).float(), to_uint8(targets).float()
    return 10 * torch.log10(255.0**2 / (a - b).square().mean((1, 2, 3)))


def ssim(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each image (11×11 Gaussian, σ 1.5), after rounding to uint8.

    Both are (B, 3, H, W) in [-1, 1], at least 11 pixels a side; returns (B,), at most 1.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = to_uint8(images).float(), to_uint8(targets).float()
    value = structural_similarity_index_measure(a, b, sigma=1.5, data_range=255.0, reduction="none")
    return torch.as_tensor(value).reshape(-1)


def lr_consistency(images: torch.Tensor, low_resolution: torch.Tensor) -> torch.Tensor:
    """Agreement with the input: PSNR in dB between the bicubically reduced result and the low-resolution face.

    A face of more than R/4 is reduced to that first: what is finer may be the damage that the result is without.
    Images are (B, 3, R, R) and (B, 3, n, n) in [-1, 1]; returns (B,).
    """
    side = min(low_resolution.shape[-1], images.shape[-1] // 4)
    return psnr(bicubic_downscale(images, side), resize(low_resolution, side))


def spread(samples: torch.Tensor) -> torch.Tensor:
    """Disagreement of restorations of one face: standard deviation over samples, mean over channels.

    (N, 3, H, W) in [-1, 1] → (H, W), on the scale of [0, 1] pixel values: 0 where all agree, at most about 0.5.
    """
    return samples.float().std(0, correction=0).mean(0) / 2
