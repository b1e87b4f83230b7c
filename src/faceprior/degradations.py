"""How a sharp face becomes a bad one: plain bicubic, and the field's real-world chain.

The real-world chain of blind face restoration is LQ = resize(JPEG_q((HQ ⊗ blur_σ) ↓_r + noise_δ)). Its presets are
published for 512×512; here σ and r shrink with the resolution, so that the same share of the face is lost.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from faceprior.errors import OptionError
from faceprior.images import resize, to_pil, to_tensor, to_uint8


@dataclass(frozen=True)
class ChainPreset:
    """Ranges of the real-world chain, each drawn uniformly; lengths are for 512×512.

    Attributes:
        blur_sigma: standard deviation of the Gaussian blur, in pixels.
        downscale: factor r.
        noise: standard deviation of the Gaussian noise, in 1/255 of [0, 1].
        jpeg_quality: JPEG quality.
    """

    blur_sigma: tuple[float, float]
    downscale: tuple[float, float]
    noise: tuple[float, float]
    jpeg_quality: tuple[int, int]


CHAIN_PRESETS = {
    "gfpgan": ChainPreset((0.1, 10.0), (0.8, 8.0), (0.0, 20.0), (60, 100)),
    "codeformer": ChainPreset((1.0, 15.0), (4.0, 30.0), (0.0, 20.0), (30, 80)),
    "difface": ChainPreset((0.1, 15.0), (0.8, 32.0), (0.0, 20.0), (30, 100)),
    "diffbir": ChainPreset((0.1, 12.0), (1.0, 12.0), (0.0, 15.0), (30, 100)),
}
"""Published ranges: GFPGAN (Wang et al. 2021), CodeFormer (Zhou et al. 2022), DifFace (Yue & Loy 2024), DiffBIR
(Lin et al. 2024)."""


def bicubic_downscale(faces: torch.Tensor, side: int) -> torch.Tensor:
    """Antialiased bicubic, rounded to 8 bits as a file would be.

    Args:
        faces: (B, 3, R, R) in [-1, 1].
        side: side of the result, in pixels.

    Returns:
        (B, 3, side, side).
    """
    return to_uint8(resize(faces, side)).float() / 127.5 - 1.0


def chain_preset(name: str) -> ChainPreset:
    """Return a named preset of the real-world chain; raises OptionError for an unknown name."""
    if name not in CHAIN_PRESETS:
        raise OptionError(f"degradation {name!r} is not known; choose {', '.join(CHAIN_PRESETS)}")
    return CHAIN_PRESETS[name]


def real_world(face: torch.Tensor, preset: ChainPreset, generator: torch.Generator) -> torch.Tensor:
    """Send one face through the real-world chain, with everything drawn from `generator` (on the CPU).

    Args:
        face: (3, R, R) in [-1, 1], on the CPU.
        preset: the ranges.
        generator: source of all draws.

    Returns:
        (3, R, R) in [-1, 1].
    """
    side = face.shape[-1]
    shrink = side / 512

    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    sigma = draw(*preset.blur_sigma) * shrink
    isotropic = draw(0, 1) < 0.5
    sigma_across = sigma if isotropic else draw(*preset.blur_sigma) * shrink
    blurred = gaussian_blur(face[None], sigma, sigma_across, draw(0, np.pi))
    factor = max(1.0, draw(*preset.downscale) * shrink)
    small = resize(blurred, max(4, round(side / factor)))
    small = small + torch.randn(small.shape, generator=generator) * (draw(*preset.noise) * 2 / 255)
    quality = round(draw(*preset.jpeg_quality))
    return resize(jpeg(small[0], quality)[None], side)[0].clamp(-1, 1)


def gaussian_blur(images: torch.Tensor, sigma: float, sigma_across: float, angle: float) -> torch.Tensor:
    """Blur with an anisotropic Gaussian.

    Args:
        images: (B, C, H, W).
        sigma: standard deviation along `angle`, in pixels; 0 leaves the images as they are.
        sigma_across: standard deviation across it.
        angle: in radians.
    """
    radius = min(int(np.ceil(3 * max(sigma, sigma_across))), min(images.shape[-2:]) - 1)
    if radius == 0:
        return images
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    y, x = torch.meshgrid(offsets, offsets, indexing="ij")
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    floor = 1e-3  # of a pixel: keeps a zero width from dividing by zero
    kernel = torch.exp(-0.5 * ((along / max(sigma, floor)) ** 2 + (across / max(sigma_across, floor)) ** 2))
    kernel = (kernel / kernel.sum()).to(images)
    channels = images.shape[1]
    padded = F.pad(images, (radius,) * 4, mode="reflect")
    return F.conv2d(padded, kernel.expand(channels, 1, -1, -1), groups=channels)


def jpeg(image: torch.Tensor, quality: int) -> torch.Tensor:
    """Compress one (3, H, W) image with JPEG at `quality` (1 to 100) and decode it again."""
    buffer = io.BytesIO()
    to_pil(image).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as decoded:
        return to_tensor(decoded)
