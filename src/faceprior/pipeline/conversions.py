"""Between what users of the pipeline have and what it computes with: images, sizes, seeds, output types."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from faceprior.errors import ImageError, OptionError
from faceprior.images import MIN_SIDE, read_image, resize, square, to_pil, to_rgb, to_tensor

ImageInput = Image.Image | np.ndarray | torch.Tensor | str | Path
Seed = int | torch.Generator
OutputType = Literal["pil", "np", "pt"]

MIN_SCALE, MAX_SCALE = 2.0, 32.0
AUTO_SCALES = (4.0, 16.0)
"""The range that scale "auto" keeps to: what the priors and correctors are made for."""


def as_tensors(images: ImageInput | Sequence[ImageInput]) -> list[torch.Tensor]:
    """Return every kind of image input as square (3, n, n) tensors in [-1, 1].

    Raises:
        ImageError: an input has the wrong type, shape or size, or a file cannot be read.
    """
    one = isinstance(images, Image.Image | str | Path) or (
        isinstance(images, np.ndarray | torch.Tensor) and images.ndim in (2, 3)
    )
    listed: Sequence[Any] = [images] if one else images  # type: ignore[assignment]
    if not isinstance(listed, Sequence | np.ndarray | torch.Tensor):
        raise ImageError(_not_understood(listed))
    if len(listed) == 0:
        raise ImageError("no image was given")
    return [_as_tensor(image) for image in listed]


def _as_tensor(image: Any) -> torch.Tensor:
    if isinstance(image, str | Path):
        return _checked(to_tensor(square(read_image(image))))
    if isinstance(image, Image.Image):
        return _checked(to_tensor(square(to_rgb(image))))
    values = _channels_first(image)
    values = values.float() / 255.0 if values.dtype == torch.uint8 else values.float()
    if values.numel() == 0:
        raise ImageError("a face of 0 pixels is too small")
    if not bool(torch.isfinite(values).all()) or values.min() < 0 or values.max() > 1:
        raise ImageError("an image has values outside [0, 1]; give floats in [0, 1] or uint8")
    side = min(values.shape[1:])
    top, left = (values.shape[1] - side) // 2, (values.shape[2] - side) // 2
    return _checked(values[:, top : top + side, left : left + side] * 2 - 1)


def _channels_first(image: Any) -> torch.Tensor:
    """An array (H, W), (H, W, 1) or (H, W, 3), or a tensor (H, W), (1, H, W) or (3, H, W), as (3, H, W)."""
    if isinstance(image, np.ndarray):
        values = torch.from_numpy(np.ascontiguousarray(image))
        values = values.permute(2, 0, 1) if values.ndim == 3 else values[None]
    elif isinstance(image, torch.Tensor):
        values = image.detach().cpu()
        values = values if values.ndim == 3 else values[None]
    else:
        raise ImageError(_not_understood(image))
    if values.ndim != 3 or values.shape[0] not in (1, 3):
        raise ImageError(_not_understood(image))
    return values.expand(3, -1, -1)


def _not_understood(image: Any) -> str:
    shape = getattr(image, "shape", None)
    return (
        f"an image of type {type(image).__name__}{f' {tuple(shape)}' if shape is not None else ''} is not understood;"
        " give a Pillow image, a path, an array (H, W, 3) or a tensor (3, H, W)"
    )


def _checked(face: torch.Tensor) -> torch.Tensor:
    if face.shape[-1] < MIN_SIDE:
        raise ImageError(f"a face of {face.shape[-1]} pixels is too small; it needs at least {MIN_SIDE}")
    return face


def low_resolution(
    face: torch.Tensor, scale: float | Literal["auto"], resolution: int, *, blind: bool = False
) -> torch.Tensor:
    """Bring a face to the size that it is taken to have.

    Args:
        face: (3, n, n) in [-1, 1].
        scale: resolution / side of the result; "auto" keeps the face's own side within ×4 to ×16.
        resolution: side R of the restored face.
        blind: "auto" keeps the face's own side up to R.

    Raises:
        OptionError: the scale is not a number from 2 to 32, or leaves fewer than 4 pixels.
    """
    if isinstance(scale, str) and scale == "auto":
        low, high = (round(resolution / bound) for bound in reversed(AUTO_SCALES))
        high = resolution if blind else high
        side = min(max(face.shape[-1], low), high)
    else:
        scale = plain(scale)
        if not (isinstance(scale, int | float) and MIN_SCALE <= scale <= MAX_SCALE):
            raise OptionError(f"scale is {scale!r}; choose a number from {MIN_SCALE:g} to {MAX_SCALE:g}, or auto")
        side = round(resolution / scale)
        if side < MIN_SIDE:
            raise OptionError(
                f"scale {scale:g} leaves {side} pixels of a {resolution}-pixel face; choose a smaller one"
            )
    return resize(face[None], side)[0].clamp(-1, 1)


def plain(value: Any) -> Any:
    """Return a NumPy or torch number as Python's own; anything else as it is."""
    return value.item() if isinstance(value, np.generic | torch.Tensor) and value.ndim == 0 else value


def generators_of(seeds: Seed | Sequence[Seed] | None, count: int) -> list[torch.Generator]:
    """Return a generator for each of `count` faces (`FacePriorPipeline.__call__`).

    Raises:
        OptionError: there are several seeds, but not one for each; or one is neither a seed nor a generator.
    """
    if seeds is None:
        seeds = int(torch.randint(2**62, ()))
    if isinstance(seeds, torch.Generator):
        copies = [seeds.clone_state() for _ in range(count)]
        torch.randint(2**62, (), generator=seeds, device=seeds.device)  # the next call starts elsewhere
        return copies
    if not isinstance(seeds, Sequence):
        return [_seeded(seeds) for _ in range(count)]
    if len(seeds) != count:
        raise OptionError(f"{len(seeds)} generators for {count} images; give one, or one for each")
    return [own if isinstance(own, torch.Generator) else _seeded(own) for own in seeds]


def _seeded(seed: Any) -> torch.Generator:
    seed = plain(seed)
    if not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise OptionError(f"generator is {seed!r}; give a torch.Generator, or a seed from 0 to 2^64 - 1")
    return torch.Generator().manual_seed(seed)


def as_images(images: torch.Tensor, output_type: OutputType) -> Any:
    """Return images (B, 3, R, R) in [-1, 1] as `FacePriorOutput.images` has them."""
    if output_type == "pil":
        return [to_pil(image) for image in images]
    values = (images + 1) / 2
    return as_values(values.permute(0, 2, 3, 1) if output_type == "np" else values, output_type)


def as_values(values: torch.Tensor, output_type: OutputType) -> Any:
    """Return a tensor for "pt", else an array."""
    return values if output_type == "pt" else values.numpy()
