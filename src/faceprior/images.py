"""Pictures in and out: any file that Pillow reads becomes upright RGB; results are written atomically.

Tensors are RGB float32 in [-1, 1], shape (3, H, W) for one image and (B, 3, H, W) for a batch.
"""

from __future__ import annotations

import json
import secrets
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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

_MEGAPIXELS = MAX_PIXELS // 1_000_000

MIN_SIDE = 4
"""Smallest side that is accepted, in pixels: below it nothing of a face is left."""

METADATA_KEY = "faceprior"


def read_image(path: str | Path) -> Image.Image:
    """Read a picture as upright 8-bit RGB; see `read_picture`."""
    return read_picture(path).image


@dataclass(frozen=True)
class Picture:
    """A picture that was read.

    Attributes:
        image: upright 8-bit RGB.
        notes: what had to be given up of the file, in words: frames, depth, transparency.
    """

    image: Image.Image
    notes: tuple[str, ...] = ()


def read_picture(path: str | Path) -> Picture:
    """Read a picture as upright 8-bit RGB, and say what of the file that leaves out.

    EXIF rotation is applied, 16-bit and floating-point samples are scaled to 8 bits, grey, palette and CMYK
    become RGB, transparency is laid over white, and of an animation the first frame is taken.

    Raises:
        ImageError: the file is missing, a folder, empty, damaged, not an image, smaller than `MIN_SIDE` a
            side or larger than `MAX_PIXELS`. The message names the file and the remedy.
    """
    path = Path(path)
    _check_file(path)
    with _opened(path) as image:
        _check_size(path, *image.size)
        notes = _losses(image)
        image.load()
        return Picture(to_rgb(image), notes)


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise ImageError(f"{path}: cannot be opened ({error.strerror}); check the name") from error
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(f"{path}: is a folder; name the pictures inside it, for example {path}/*.png")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{path}: is not a regular file; save the picture to a file first")
    if status.st_size == 0:
        raise ImageError(f"{path}: is empty (0 bytes); copy the picture again")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture; whatever its decoder raises, then or later, becomes an ImageError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the pixel limit is ours, and is checked before decoding
            with Image.open(path) as image:
                yield image
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: is not an image that Pillow can read; convert it to PNG or JPEG") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: is more than {_MEGAPIXELS} megapixels; crop the face first") from error
    except (FileNotFoundError, PermissionError) as error:
        raise ImageError(f"{path}: cannot be opened ({error.strerror}); check its name and permissions") from error
    except Exception as error:  # decoders raise anything on a damaged file, struct.error for one
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(
            f"{path}: is damaged, cut short or of an unknown kind ({reason}); copy it again or convert it to PNG"
        ) from error


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"{path}: {width}×{height} is more than {_MEGAPIXELS} megapixels; crop the face first")
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"{path}: {width}×{height} is too small; a face needs at least {MIN_SIDE}×{MIN_SIDE} pixels")


def _losses(image: Image.Image) -> tuple[str, ...]:
    notes = []
    if getattr(image, "is_animated", False):
        notes.append("first frame of several")
    if _is_deep(image):
        notes.append("scaled to 8 bits")
    if image.has_transparency_data:
        notes.append("transparency laid over white")
    return tuple(notes)


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith("I") or image.mode == "F"


def to_rgb(image: Image.Image) -> Image.Image:
    """Return any Pillow image as upright 8-bit RGB, transparency over white."""
    image = ImageOps.exif_transpose(image)
    if _is_deep(image):
        image = Image.fromarray(_to_8_bits(np.asarray(image).astype(np.float64), image.mode))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(samples: NDArray[np.float64], mode: str) -> NDArray[np.uint8]:
    samples = np.nan_to_num(samples, posinf=0.0, neginf=0.0)
    tops = (65535.0,) if mode.startswith("I") else (1.0, 255.0, 65535.0)  # the ranges that programs write
    low, high = samples.min(), samples.max()
    top = next((top for top in tops if low >= 0 and high <= top), None)
    if top is None:  # no known range: use its own
        samples, top = samples - low, max(high - low, 1e-12)
    return np.round(samples * (255.0 / top)).astype(np.uint8)


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
        text = json.dumps(metadata, sort_keys=True, ensure_ascii=False)
        # file names need not be UTF-8; what is not becomes JSON's own \udcXX
        info.add_itxt(METADATA_KEY, text.encode("utf-8", "backslashreplace").decode("utf-8"))
    path = Path(path)
    partial = path.with_name(f".faceprior-{secrets.token_hex(8)}.partial")
    try:
        try:
            with partial.open("xb") as file:
                image.save(file, format="PNG", pnginfo=info)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"{path}: cannot be written ({reason}); choose another folder with --output") from error


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Read back what `write_png` stored.

    Raises:
        ImageError: the file is not a PNG that faceprior wrote.
    """
    path = Path(path)
    _check_file(path)
    with _opened(path) as image:
        text = image.info.get(METADATA_KEY)
    if not isinstance(text, str):
        raise ImageError(f"{path}: carries no faceprior metadata; only results written by faceprior do")
    try:
        metadata = json.loads(text)
    except ValueError as error:
        raise ImageError(f"{path}: its faceprior metadata is damaged ({error}); restore the face again") from error
    if not isinstance(metadata, dict):
        raise ImageError(f"{path}: its faceprior metadata is damaged (not an object); restore the face again")
    return metadata
