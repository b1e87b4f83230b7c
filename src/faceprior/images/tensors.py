"""Between Pillow images, 8-bit arrays and tensors in [-1, 1]."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import torch


def square(image: Image.Image) -> Image.Image:
    """Return the centred square of an image; a square image is returned as it is."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return image if width == height else image.crop((left, top, left + side, top + side))


def to_tensor(image: Image.Image) -> torch.Tensor:
    """Return an RGB Pillow image as a float32 tensor in [-1, 1], shape (3, H, W)."""
    import torch

    pixels = torch.from_numpy(np.array(image.convert("RGB")))  # (H, W, 3)
    return pixels.permute(2, 0, 1).contiguous().float() / 127.5 - 1.0


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Round images in [-1, 1] to uint8; the shape is kept, values outside the range are clipped."""
    import torch

    return ((images.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_pil(image: torch.Tensor) -> Image.Image:
    """Return a (3, H, W) tensor in [-1, 1] as an 8-bit RGB Pillow image."""
    return Image.fromarray(to_uint8(image).permute(1, 2, 0).cpu().numpy())


def resize(images: torch.Tensor, side: int) -> torch.Tensor:
    """Resize (B, 3, H, W) images to (B, 3, side, side) with the antialiased bicubic kernel (a = -0.5)."""
    import torch.nn.functional as F

    if images.shape[-2:] == (side, side):
        return images
    return F.interpolate(images, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
