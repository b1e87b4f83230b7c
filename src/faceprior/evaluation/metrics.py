"""Fidelity: PSNR and SSIM on RGB as 8-bit pictures have it, border 0 (torchmetrics computes them)."""

from __future__ import annotations

import torch

from faceprior.images import to_uint8


def psnr(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each image in dB, after rounding to uint8.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        targets: of the same shape.

    Returns:
        (B,); identical images give infinity.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    a, b = to_uint8(images).float(), to_uint8(targets).float()
    return peak_signal_noise_ratio(a, b, data_range=255.0, reduction="none", dim=(1, 2, 3))


def ssim(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each image (11×11 Gaussian, σ 1.5), after rounding to uint8.

    Args:
        images: (B, 3, H, W) in [-1, 1], at least 11 pixels a side.
        targets: of the same shape.

    Returns:
        (B,), at most 1.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = to_uint8(images).float(), to_uint8(targets).float()
    value = structural_similarity_index_measure(a, b, sigma=1.5, data_range=255.0, reduction="none")
    return torch.as_tensor(value).reshape(-1)
