"""Samples of any Pillow image as grey or RGB arrays of 8 or 16 bits, with opacity apart."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WHITE_IS_ZERO = 0
_OTHER_BYTE = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}


@dataclass(frozen=True, eq=False)
class Samples:
    """Pixels (H, W, C), C 1 or 3, and opacity (H, W) or None, of one type; with what they leave out of the file."""

    pixels: NDArray[Any]
    alpha: NDArray[Any] | None
    lost: tuple[str, ...] = ()


def samples_of(image: Image.Image, rawmode: str | None, open_again: Callable[[], Image.Image] | None) -> Samples:
    """Return the samples of any image but CMYK, upright, at their own depth.

    `rawmode` is what `sixteen_bit_rawmode` said of it before it was loaded. Where its file cannot be opened again
    16-bit colour comes out in 8 bits, as Pillow decodes it.
    """
    transparent = image.info.get("transparency")
    upright = ImageOps.exif_transpose(image)
    if rawmode and open_again:
        return _sixteen_bit_colour(upright, rawmode, open_again, transparent)
    if image.mode.startswith("I") or image.mode == "F":
        pixels, lost = _sixteen_bits(np.asarray(upright), image.mode)
        tags = getattr(image, "tag_v2", {})
        if tags.get(TiffImagePlugin.BITSPERSAMPLE) == (12,):
            pixels = (pixels << 4 | pixels >> 8).astype(np.uint16)
        if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO:  # Pillow turns 8 bits only
            pixels = np.invert(pixels)
        return Samples(pixels[..., None], _keyed_alpha(pixels[..., None], transparent), lost)
    lost = ("16-bit samples scaled to 8 bits",) if rawmode else ()
    grey = upright.mode in ("1", "L", "LA", "La")
    if upright.has_transparency_data:
        split = np.asarray(upright.convert("LA" if grey else "RGBA"))
        return Samples(np.ascontiguousarray(split[..., :-1]), np.ascontiguousarray(split[..., -1]), lost)
    plain = "L" if grey else "RGB"
    pixels = np.asarray(upright if upright.mode == plain else upright.convert(plain))  # convert always copies
    return Samples(pixels[..., None] if grey else pixels, None, lost)


def eight_bits(samples: NDArray[Any]) -> NDArray[np.uint8]:
    """Return samples of 8 or 16 bits as 8 bits, rounded to the nearest."""
    if samples.dtype == np.uint8:
        return samples
    return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)


def spread_under(pixels: NDArray[Any], alpha: NDArray[Any], reach: int = 6) -> NDArray[Any]:
    """Continue the colours of what is seen into what is fully transparent, so that enlarging mixes in no others.

    Args:
        pixels: (H, W, C), of 8 or 16 bits.
        alpha: (H, W), opacity.
        reach: pixels; the Lanczos kernel has 3, for opacity and for colours.
    """
    known = (alpha > 0).astype(np.float32)
    colours = pixels * known[..., None]
    for _ in range(reach):
        weights, sums = (_over_neighbours(own) for own in (known[..., None], colours))
        new = (known == 0) & (weights[..., 0] > 0)
        if not new.any():
            break
        colours[new] = sums[new] / weights[new]
        known[new] = 1
    return np.where(known[..., None] > 0, np.rint(colours), pixels).astype(pixels.dtype)


def _over_neighbours(values: NDArray[np.float32]) -> NDArray[np.float32]:
    padded = np.pad(values, ((1, 1), (1, 1), (0, 0)))
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return np.asarray(rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:])


def as_image(samples: NDArray[Any]) -> Image.Image:
    """Return (H, W), (H, W, 1) or (H, W, 3) samples as an 8-bit Pillow image, "L" or "RGB"."""
    return Image.fromarray(eight_bits(samples[..., 0] if samples.ndim == 3 and samples.shape[-1] == 1 else samples))


def sixteen_bit_rawmode(image: Image.Image) -> str | None:
    """Pillow's name for how 16-bit colour lies in a file that was not decoded yet; of others None."""
    tiles = getattr(image, "tile", None)
    if not tiles or image.mode not in ("RGB", "RGBA", "CMYK"):
        return None
    arguments = tiles[0].args
    rawmode = arguments if isinstance(arguments, str) else arguments[0]
    return rawmode if isinstance(rawmode, str) and rawmode[:-1].endswith(";16") else None


def _sixteen_bit_colour(
    upright: Image.Image, rawmode: str, open_again: Callable[[], Image.Image], transparent: object
) -> Samples:
    # Pillow has no 16-bit colour, and its decoders keep one byte of each sample: the high one. With the other byte
    # order named as the file's, they keep the low one.
    premultiplied, rawmode = rawmode.startswith("RGBa"), rawmode.replace("RGBa", "RGBA")
    if rawmode == "LA;16B":  # as RGBA it is all four bytes: grey high and low, opacity high and low
        both = _decoded(open_again, "RGBA")
        high, low = both[..., ::2], both[..., 1::2]
    else:
        high = _decoded(open_again, rawmode) if premultiplied else np.asarray(upright)
        low = _decoded(open_again, rawmode[:-1] + _OTHER_BYTE[rawmode[-1]])
    whole = high.astype(np.uint16) * 256 + low
    if whole.shape[-1] not in (2, 4):
        return Samples(whole, _keyed_alpha(whole, transparent))
    pixels, alpha = np.ascontiguousarray(whole[..., :-1]), np.ascontiguousarray(whole[..., -1])
    return Samples(_divided(pixels, alpha) if premultiplied else pixels, alpha)


def _decoded(open_again: Callable[[], Image.Image], rawmode: str) -> NDArray[np.uint8]:
    """Decode a file, upright, as if its samples lay as `rawmode` says."""
    with open_again() as image:
        if not isinstance(image, ImageFile.ImageFile):  # what Image.open gives
            raise TypeError(type(image))
        image.tile = [
            tile._replace(args=(rawmode, *tile.args[1:]) if isinstance(tile.args, tuple) else rawmode)
            for tile in image.tile
        ]
        return np.asarray(ImageOps.exif_transpose(image))


def _divided(pixels: NDArray[np.uint16], alpha: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Colours that were multiplied with their opacity; black where there is none."""
    opacity = np.maximum(alpha, 1).astype(np.uint32)[..., None]
    divided = (pixels.astype(np.uint32) * 65535 + opacity // 2) // opacity
    return np.where(alpha[..., None] > 0, np.minimum(divided, 65535), 0).astype(np.uint16)


def _keyed_alpha(pixels: NDArray[np.uint16], transparent: object) -> NDArray[np.uint16] | None:
    """Opacity where one colour of a PNG stands for transparency."""
    if not isinstance(transparent, int | tuple):
        return None
    return np.where((pixels == transparent).all(-1), 0, 65535).astype(np.uint16)


def _sixteen_bits(samples: NDArray[Any], mode: str) -> tuple[NDArray[np.uint16], tuple[str, ...]]:
    if samples.dtype.itemsize == 2 and samples.dtype.kind == "u":
        return samples.astype(np.uint16), ()
    values = np.nan_to_num(samples.astype(np.float64), posinf=0.0, neginf=0.0)
    tops = (65535.0,) if mode.startswith("I") else (1.0, 255.0, 65535.0)  # the ranges that programs write
    low, high = values.min(), values.max()
    top = next((top for top in tops if low >= 0 and high <= top), None)
    if top == 65535.0 and samples.dtype.kind in "iu":
        return values.astype(np.uint16), ()
    if top is None:  # no known range: use its own
        values, top = values - low, max(high - low, 1e-12)
    kind = "floating-point" if samples.dtype.kind == "f" else "32-bit"
    return np.round(values * (65535.0 / top)).astype(np.uint16), (f"{kind} samples scaled to 16 bits",)
