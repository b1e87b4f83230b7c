"""Pictures in and out: any file that Pillow reads becomes upright RGB; results are written atomically.

Tensors are RGB float32 in [-1, 1], shape (3, H, W) for one image and (B, 3, H, W) for a batch.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from faceprior.errors import ImageError, OutputError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

MAX_PIXELS = 100_000_000
"""Largest picture that is decoded, in pixels: 300 MB of RGB."""

MIN_SIDE = 4
"""Smallest side that is accepted, in pixels: below it nothing of a face is left."""

METADATA_KEY = "faceprior"


def read_image(path: str | Path) -> Image.Image:
    """Read a picture as upright 8-bit RGB.

    EXIF rotation is applied, 16-bit and floating-point samples are scaled to 8 bits, grey, palette and CMYK
    become RGB, transparency is laid over white, and of an animation the first frame is taken.

    Raises:
        ImageError: the file is missing, a folder, empty, damaged, not an image, smaller than `MIN_SIDE` a
            side or larger than `MAX_PIXELS`. The message names the file and the remedy.
    """
    path = Path(path)
    if path.is_dir():
        raise ImageError(f"{path}: is a folder; name the pictures inside it, for example {path}/*.png")
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ImageError(f"{path}: cannot be opened ({error.strerror}); check the name") from error
    if size == 0:
        raise ImageError(f"{path}: is empty (0 bytes); copy the picture again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the pixel limit is ours, and is checked before decoding
            with Image.open(path) as image:
                _check_size(path, *image.size)
                image.load()
                return to_rgb(image)
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{path}: is not an image that Pillow can read; convert it to PNG or JPEG"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: {error}; crop the face first") from error
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError, ArithmeticError, LookupError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{path}: is damaged or cut short ({error}); copy or download it again") from error


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{path}: {width}×{height} is more than {MAX_PIXELS // 1_000_000} megapixels; crop the face first"
        )
    if min(width, height) < MIN_SIDE:
        raise ImageError(
            f"{path}: {width}×{height} is too small; a face needs at least {MIN_SIDE}×{MIN_SIDE} pixels"
        )


def to_rgb(image: Image.Image) -> Image.Image:
    """Return any Pillow image as upright 8-bit RGB, transparency over white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        samples = np.asarray(image).astype(np.float64)
        top = 65535.0 if image.mode.startswith("I") else 1.0
        if samples.max(initial=0.0) > top or samples.min(initial=0.0) < 0:  # no known range: use its own
            samples = samples - samples.min()
            top = max(float(samples.max()), 1e-12)
        image = Image.fromarray(np.round(samples * (255.0 / top)).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


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


def write_png(
    path: str | Path, image: Image.Image | NDArray[np.uint8], metadata: dict[str, Any] | None = None
) -> None:
    """Write a PNG atomically, with `metadata` as JSON under the key "faceprior".

    Raises:
        OutputError: the file cannot be written; nothing half-written is left behind.
    """
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    info = PngInfo()
    if metadata is not None:
        info.add_itxt(METADATA_KEY, json.dumps(metadata, sort_keys=True, ensure_ascii=False))
    path = Path(path)
    try:
        descriptor, partial = tempfile.mkstemp(prefix=".faceprior-", suffix=".png", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                image.save(file, format="PNG", pnginfo=info)
            Path(partial).chmod(0o644)
            Path(partial).replace(path)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"{path}: cannot be written ({reason}); choose another folder with --output"
        ) from error


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Read back what `write_png` stored.

    Raises:
        ImageError: the file is not a PNG that faceprior wrote.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            text = image.info.get(METADATA_KEY)
    except OSError as error:
        raise ImageError(f"{path}: cannot be read as an image ({error})") from error
    if not isinstance(text, str):
        raise ImageError(f"{path}: carries no faceprior metadata; only results written by faceprior do")
    try:
        metadata = json.loads(text)
    except json.JSONDecodeError as error:
        raise ImageError(f"{path}: its faceprior metadata is damaged ({error})") from error
    if not isinstance(metadata, dict):
        raise ImageError(f"{path}: its faceprior metadata is damaged (not an object)")
    return metadata
