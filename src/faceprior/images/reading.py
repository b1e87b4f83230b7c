"""Reading pictures: any file that Pillow reads, upright, with what it says about itself."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from faceprior.errors import ImageError
from faceprior.images.colour import colour_space
from faceprior.images.limits import MAX_PIXELS, check_file, check_layout, check_size, opened
from faceprior.images.metadata import METADATA_KEY, exif_of, without_promises, xmp_of
from faceprior.images.parts import frames_left_out, parts_left_out
from faceprior.images.picture import Picture
from faceprior.images.planes import has_planes, interleaved
from faceprior.images.png_colour import png_profile
from faceprior.images.samples import Samples, as_image, eight_bits, samples_of, sixteen_bit_rawmode

_KEPT_TEXT = {METADATA_KEY, "XML:com.adobe.xmp", "Raw profile type exif"}


def read_image(path: str | Path) -> Image.Image:
    """Read a picture as upright 8-bit RGB; see `read_picture`."""
    return read_picture(path).image


def read_picture(path: str | Path) -> Picture:
    """Read a picture: as the networks see it, its own samples, and what the file says about itself.

    EXIF rotation is applied. For the networks, 16-bit and floating-point samples are scaled to 8 bits, grey and
    palette become RGB, colours become sRGB, and transparency is laid over white. Of an animation the first frame
    is taken. Apart from that grey stays grey, 16 bits stay 16 bits and opacity is kept; CMYK becomes RGB.

    Raises:
        ImageError: the file is missing, a folder, empty, damaged, not an image, smaller than `MIN_SIDE` a
            side or larger than `MAX_PIXELS`. The message names the file and the remedy.
    """
    return decode_picture(read_file(path), path)


def read_file(path: str | Path) -> bytes:
    """Return what is in a picture's file; it is not looked at.

    Raises:
        ImageError: the file is missing, a folder, empty, or cannot be read.
    """
    path = Path(path)
    check_file(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be opened ({error.strerror}); check its name and permissions") from error


def decode_picture(content: bytes, name: str | Path, max_pixels: int = MAX_PIXELS) -> Picture:
    """Do what `read_picture` does for the bytes of a file.

    Raises:
        ImageError: as `read_picture`, but for more than `max_pixels`; the message begins with `name`.
    """
    with opened(content, name) as image:
        check_size(name, *image.size, max_pixels)
        check_layout(name, image)
        left_out = parts_left_out(image, content)
        if has_planes(image):
            frames = tuple(frames_left_out(image))
            picture = decode_picture(interleaved(content, image), name, max_pixels)
            return replace(picture, notes=(*frames, *picture.notes), lost=(*frames, *picture.lost))
        ignored = _give_profile(image, content)
        picture = _picture(image, lambda: Image.open(io.BytesIO(content)))
        picture = replace(picture, lost=(*picture.lost, *left_out, *ignored))
        return replace(picture, lossless=True) if image.format == "WEBP" and _is_lossless_webp(content) else picture


def to_rgb(image: Image.Image) -> Image.Image:
    """Return any Pillow image as upright 8-bit RGB, in sRGB, transparency over white."""
    return _picture(image, None).image


def _give_profile(image: Image.Image, content: bytes) -> list[str]:
    """Let a PNG that says in chunks of its own what its colours are say so by a profile; returns what is ignored."""
    if image.format != "PNG":
        return []
    profile, ignored = png_profile(content, image.info, grey=image.mode in ("1", "L", "LA", "I", "I;16", "I;16B"))
    if profile is not None:
        image.info["icc_profile"] = profile
    return [] if ignored is None else [ignored]


def _picture(image: Image.Image, open_again: Callable[[], Image.Image] | None) -> Picture:
    notes = frames_left_out(image)
    lost = list(notes)
    rawmode = sixteen_bit_rawmode(image)
    image.load()
    if rawmode or image.mode.startswith("I") or image.mode == "F":
        notes.append("scaled to 8 bits")
    if image.mode == "CMYK":
        notes.append("CMYK turned into RGB")
    samples, icc_profile, colour_lost = _colours(image, rawmode, open_again)
    if samples.alpha is not None:
        notes.append("transparency laid over white")
    exif, exif_lost = exif_of(image)
    lost += [*samples.lost, *colour_lost, *exif_lost]
    xmp, broken_promises = without_promises(xmp_of(image))
    lost += broken_promises
    if image.info.get("photoshop"):
        lost.append("IPTC captions left out")
    if set(getattr(image, "text", ())) - _KEPT_TEXT:
        lost.append("PNG text left out")
    return Picture(
        image=_seen(samples, icc_profile),
        notes=tuple(notes),
        pixels=samples.pixels,
        alpha=samples.alpha,
        format="JPEG" if image.format == "MPO" else image.format or "PNG",  # a phone's JPEG with a second picture
        icc_profile=icc_profile,
        exif=exif,
        xmp=xmp,
        dpi=_dpi(image),
        lost=tuple(lost),
    )


def _colours(
    image: Image.Image, rawmode: str | None, open_again: Callable[[], Image.Image] | None
) -> tuple[Samples, bytes | None, tuple[str, ...]]:
    """The samples, the profile that says what they mean, and what was lost of it."""
    icc_profile = image.info.get("icc_profile") or None
    space = colour_space(icc_profile) if icc_profile else None
    if image.mode == "CMYK":
        upright = ImageOps.exif_transpose(image)
        usable = space is not None and space.mode == "CMYK"
        rgb = space.to_srgb(upright) if space and usable else upright.convert("RGB")
        how = "through its profile" if usable else "without a profile"
        depth = ("16-bit samples scaled to 8 bits",) if rawmode else ()
        return Samples(np.asarray(rgb), None, depth), None, (f"CMYK turned into RGB {how}",)
    samples = samples_of(image, rawmode, open_again)
    if image.mode == "LAB":
        return samples, None, ("Lab colours turned into sRGB",)
    if icc_profile is None:
        return samples, None, ()
    grey = samples.pixels.shape[-1] == 1
    if space is None or space.mode == "CMYK" or (space.mode == "L" and not grey):
        return samples, None, ("a colour profile that cannot be used left out",)
    if space.from_srgb is None:  # no way back for restored faces: the whole picture goes to sRGB
        alpha = None if samples.alpha is None else eight_bits(samples.alpha)
        rgb = space.to_srgb(as_image(samples.pixels).convert(space.mode))
        return Samples(np.asarray(rgb), alpha, samples.lost), None, ("colours turned into 8-bit sRGB",)
    return samples, icc_profile, ()


def _seen(samples: Samples, icc_profile: bytes | None) -> Image.Image:
    """What the networks see: 8-bit sRGB, transparency over white."""
    image = as_image(samples.pixels)
    space = colour_space(icc_profile) if icc_profile else None
    if space is None or space.is_srgb:
        rgb = image if image.mode == "RGB" else image.convert("RGB")  # convert always copies
    else:
        rgb = space.to_srgb(image.convert(space.mode))
    if samples.alpha is None:
        return rgb
    rgb.putalpha(as_image(samples.alpha))
    return Image.alpha_composite(Image.new("RGBA", rgb.size, "white"), rgb).convert("RGB")


def _dpi(image: Image.Image) -> tuple[float, float] | None:
    try:
        across, down = (float(value) for value in image.info["dpi"])
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return None
    return (across, down) if 1 <= across < 1e5 and 1 <= down < 1e5 else None


def _is_lossless_webp(content: bytes) -> bool:
    """Whether a WebP file of one frame is compressed without loss: Pillow does not say."""
    place = 12  # "RIFF", size, "WEBP"
    while len(head := content[place : place + 8]) == 8:
        chunk, size = struct.unpack("<4sI", head)
        if chunk in (b"VP8L", b"VP8 "):
            return chunk == b"VP8L"
        place += 8 + size + size % 2
    return False
