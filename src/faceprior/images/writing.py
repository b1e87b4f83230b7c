"""Writing pictures: atomically, in the format that they came in, with all that the file said about itself."""

from __future__ import annotations

import io
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin
from PIL.PngImagePlugin import PngInfo

from faceprior.errors import OptionError, OutputError
from faceprior.images.colour import colour_space
from faceprior.images.limits import INSTALL_HEIC, register_heif
from faceprior.images.metadata import METADATA_KEY, as_json, resized_exif, xmp_with
from faceprior.images.picture import Picture
from faceprior.images.samples import as_image, eight_bits
from faceprior.images.sixteen import write_deep_png, write_tiff

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMATS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": "4:4:4"},
    "WEBP": {"quality": 95},
    "TIFF": {"compression": "deflate"},
    "HEIF": {"quality": 85, "subsampling": "4:4:4"},
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
}
"""The formats that can be written, and how: the same words go into the metadata of the result."""

_LONGEST_SIDE = {"JPEG": 65_500, "WEBP": 16_383}
_JPEG_SEGMENT = 65_000  # bytes that EXIF or XMP may take in a JPEG


def encode_png(
    image: Image.Image | NDArray[np.uint8], metadata: dict[str, Any] | None = None, *, name: str | Path = "picture"
) -> bytes:
    """Return an image as a PNG file, with `metadata` as JSON under the key "faceprior".

    Raises:
        OutputError: it cannot be encoded; the message begins with `name`.
    """
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    with _named(name), io.BytesIO() as file:
        image.save(file, format="PNG", pnginfo=_png_text(metadata))
        return file.getvalue()


def write_png(
    path: str | Path, image: Image.Image | NDArray[np.uint8], metadata: dict[str, Any] | None = None
) -> None:
    """Write what `encode_png` returns, atomically.

    Raises:
        OutputError: the file cannot be written; nothing half-written is left behind.
    """
    write_file(path, encode_png(image, metadata, name=path))


def encode_picture(
    pixels: NDArray[Any],
    like: Picture,
    metadata: dict[str, Any] | None = None,
    file_format: str | None = None,
    *,
    name: str | Path = "picture",
) -> bytes:
    """Return a picture as a file in the format of the one that it was made from and with all that it kept.

    Lossless formats hold `pixels` exactly. Lossy ones are written with the quality that `FORMATS` gives. What a
    format cannot hold is given up: JPEG has no transparency (it is laid over white), and only PNG and TIFF have
    16 bits.

    Args:
        pixels: (H, W, 1) or (H, W, 3), uint8 or uint16, in the colour space of `like`; its size may differ
            from `like`'s, then opacity is enlarged with it.
        like: the picture that was read: its format, opacity, profile, EXIF, XMP and resolution are kept.
        metadata: how the picture was made; `read_metadata` gives it back, with "file": what `FORMATS` says.
        file_format: another of `FORMATS`.
        name: of the picture, for messages.

    Raises:
        OptionError: the format cannot be written, or needs an extra that is not installed.
        OutputError: the format does not hold so large a picture, or it cannot be encoded.
    """
    kind = file_format or like.written_as
    if kind not in FORMATS:
        raise OptionError(f"{kind}: is not a format that can be written; choose one of {', '.join(FORMATS)}")
    height, width = pixels.shape[:2]
    if max(height, width) > _LONGEST_SIDE.get(kind, max(height, width)):
        raise OutputError(
            f"{name}: {width}×{height} is more than the {_LONGEST_SIDE[kind]} pixels a side that {kind} holds;"
            " choose another format or a smaller --upscale"
        )
    lossless = kind == "WEBP" and like.format == "WEBP" and like.lossless
    how = {"lossless": True} if lossless else FORMATS[kind]
    if metadata is not None:
        metadata = {**metadata, "file": {"format": kind, **how}}
    samples, icc_profile = _samples_for(kind, pixels, like)
    exif, packet = _said(kind, like, (width, height), metadata)
    # in memory: Pillow's JPEG encoder takes no notice of a disk that fills under an open file
    with _named(name), io.BytesIO() as file:
        if kind == "TIFF":
            write_tiff(file, samples, _tiff_tags(icc_profile, exif, packet, like.dpi))
            return file.getvalue()
        options: dict[str, Any] = {"icc_profile": icc_profile, "exif": exif, "dpi": like.dpi, **how}
        options = {key: value for key, value in options.items() if value is not None}
        if kind == "PNG":
            options["pnginfo"] = _png_text(metadata, packet)
        elif packet:
            options["xmp"] = packet
        if kind == "WEBP":
            options["exact"] = True  # colours under full transparency too
        if kind == "HEIF":
            register_heif(
                OptionError(f"{name}: writing HEIC needs a plugin; {INSTALL_HEIC}, or choose another format")
            )
        if samples.dtype == np.uint16:
            write_deep_png(file, samples, **options)
        else:
            _pillow_image(samples).save(file, format=kind, **options)
        return file.getvalue()


def write_file(path: str | Path, content: bytes) -> None:
    """Write a file atomically: it takes the place of `path` when all of it is written.

    Raises:
        OutputError: it cannot be written; nothing half-written is left behind.
    """
    with _named(path), replaced(Path(path)) as partial:
        partial.write_bytes(content)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Have a file beside `path` that takes its place in the end, or vanishes if something is raised."""
    partial = path.with_name(f".faceprior-{secrets.token_hex(8)}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def _named(name: str | Path) -> Iterator[None]:
    """Turn what goes wrong into an OutputError that begins with `name`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"{name}: cannot be written ({reason}); choose another folder with --output") from error


def _said(
    kind: str, like: Picture, size: tuple[int, int], metadata: dict[str, Any] | None
) -> tuple[Image.Exif | None, bytes | None]:
    """What the new file says about itself, in EXIF and in XMP."""
    exif = resized_exif(like.exif, *size) if like.exif else None
    packet = like.xmp if metadata is None or kind == "PNG" else xmp_with(like.xmp, metadata)
    if kind == "JPEG":
        if packet and len(packet) > _JPEG_SEGMENT:
            packet = None if metadata is None else xmp_with(None, metadata)
        if exif and len(exif.tobytes()) > _JPEG_SEGMENT:
            exif = None
    return exif, packet


def _samples_for(kind: str, pixels: NDArray[Any], like: Picture) -> tuple[NDArray[Any], bytes | None]:
    """Colours and opacity in one (H, W, C) array of a depth that the format holds, and what its colours mean."""
    if kind == "TIFF" and like.alpha is not None and pixels.dtype == np.uint16 and pixels.shape[-1] == 1:
        pixels = pixels.repeat(3, axis=-1)  # few programs read 16-bit grey with opacity from a TIFF
    icc_profile = like.icc_profile
    space = colour_space(icc_profile) if icc_profile else None
    if space and space.mode == "L" and (kind not in ("PNG", "JPEG", "TIFF") or pixels.shape[-1] == 3):
        # these hold no grey, and a grey profile says nothing of colours
        if pixels.shape[-1] == 1:
            pixels = np.asarray(space.to_srgb(as_image(pixels)))
        icc_profile = None
    if kind not in ("PNG", "TIFF"):
        pixels = eight_bits(pixels)
    if like.alpha is None:
        return pixels, icc_profile
    alpha = _resized(like.alpha, pixels)[..., None]
    if kind == "JPEG":
        opacity = alpha.astype(np.float32) / 255
        return np.round(pixels * opacity + 255 * (1 - opacity)).astype(np.uint8), icc_profile
    return np.concatenate([pixels, alpha], axis=-1), icc_profile


def _resized(alpha: NDArray[Any], pixels: NDArray[Any]) -> NDArray[Any]:
    """Opacity of the size and depth of `pixels`."""
    height, width = pixels.shape[:2]
    if alpha.dtype != pixels.dtype:
        alpha = eight_bits(alpha) if pixels.dtype == np.uint8 else alpha.astype(np.uint16) * 257
    if alpha.shape == (height, width):
        return alpha
    smooth = Image.fromarray(alpha.astype(np.float32)).resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(smooth).round().clip(0, np.iinfo(alpha.dtype).max).astype(alpha.dtype)


def _pillow_image(samples: NDArray[np.uint8]) -> Image.Image:
    # "L", "LA", "RGB" or "RGBA", by the channels
    return Image.fromarray(samples[..., 0] if samples.shape[-1] == 1 else np.ascontiguousarray(samples))


def _png_text(metadata: dict[str, Any] | None, packet: bytes | None = None) -> PngInfo:
    info = PngInfo()
    if packet:
        info.add_itxt("XML:com.adobe.xmp", packet.decode("utf-8", "replace"))
    if metadata is not None:
        info.add_itxt(METADATA_KEY, as_json(metadata))
    return info


def _tiff_tags(
    icc_profile: bytes | None, exif: Image.Exif | None, packet: bytes | None, dpi: tuple[float, float] | None
) -> dict[int, Any]:
    tags: dict[int, Any] = {}
    if exif:
        tags.update(exif)
        tags.update({ifd: exif.get_ifd(ifd) for ifd in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo) if ifd in exif})
    if dpi:
        tags |= {
            ExifTags.Base.XResolution: dpi[0],
            ExifTags.Base.YResolution: dpi[1],
            ExifTags.Base.ResolutionUnit: 2,
        }
    if icc_profile:
        tags[TiffImagePlugin.ICCPROFILE] = icc_profile
    if packet:
        tags[TiffImagePlugin.XMP] = packet
    return tags
