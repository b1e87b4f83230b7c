"""16-bit TIFFs whose colours lie in planes, one after the other; Pillow misreads them: they are interleaved first."""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

_SEPARATE = 2  # TIFF's word for planes
_UNSIGNED = 1
_PLACES = {  # of the strips, and of the tiles: all planes' in one list
    TiffImagePlugin.STRIPOFFSETS: TiffImagePlugin.STRIPBYTECOUNTS,
    TiffImagePlugin.TILEOFFSETS: TiffImagePlugin.TILEBYTECOUNTS,
}
_TILE_SIDES = (322, 323)
_PLANE = {  # what is said of a plane, beside where it lies
    TiffImagePlugin.IMAGEWIDTH,
    TiffImagePlugin.IMAGELENGTH,
    TiffImagePlugin.COMPRESSION,
    TiffImagePlugin.PREDICTOR,
    TiffImagePlugin.ROWSPERSTRIP,
    *_TILE_SIDES,
}
_SUB_DIRECTORIES = {330, ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo}


def has_planes(image: Image.Image) -> bool:
    """Whether an image that was opened is a TIFF with more than 8 bits a sample in separate planes."""
    tags = getattr(image, "tag_v2", {})
    return bool(
        tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == _SEPARATE
        and max(tags[TiffImagePlugin.BITSPERSAMPLE]) > 8
        and len(tags[TiffImagePlugin.BITSPERSAMPLE]) > 1
    )


def interleaved(content: bytes, image: Image.Image) -> bytes:
    """Return the same TIFF with its samples side by side, uncompressed; all that it says of itself is kept.

    Each plane is shown to Pillow as a grey picture of its own: the same file with another directory.

    Raises:
        ValueError: the samples are not 16-bit unsigned integers, or the file is larger than 4 GB.
    """
    tags = image.tag_v2  # type: ignore[attr-defined]
    depths = tags[TiffImagePlugin.BITSPERSAMPLE]
    if set(depths) != {16} or set(tags.get(TiffImagePlugin.SAMPLEFORMAT, (_UNSIGNED,))) != {_UNSIGNED}:
        raise ValueError(f"{max(depths)}-bit samples in separate planes")
    if content[2:4] not in (b"*\0", b"\0*"):
        raise ValueError("a BigTIFF with separate planes")
    samples = np.stack([_plane(content, tags, number, len(depths)) for number in range(len(depths))], -1)  # (H, W, C)
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    left = {*_PLACES, *_PLACES.values(), *_TILE_SIDES, *_SUB_DIRECTORIES}
    for tag in tags.keys() - left - {TiffImagePlugin.COMPRESSION, TiffImagePlugin.PREDICTOR}:
        directory[tag] = tags[tag]
    exif = image.getexif()
    for ifd in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        if ifd in exif:
            directory[ifd] = exif.get_ifd(ifd)
    directory[TiffImagePlugin.COMPRESSION] = 1
    directory[TiffImagePlugin.PLANAR_CONFIGURATION] = 1
    directory[TiffImagePlugin.ROWSPERSTRIP] = len(samples)
    directory[TiffImagePlugin.STRIPOFFSETS] = (0,)
    directory[TiffImagePlugin.STRIPBYTECOUNTS] = (samples.nbytes,)
    file = io.BytesIO()
    directory.save(file)
    file.write(samples.astype("<u2").tobytes())
    return file.getvalue()


def _plane(
    content: bytes, tags: TiffImagePlugin.ImageFileDirectory_v2, number: int, count: int
) -> np.ndarray[tuple[int, int], np.dtype[np.uint16]]:
    fields: dict[int, tuple[int, ...]] = {tag: (tags[tag],) for tag in _PLANE & tags.keys()}
    fields[TiffImagePlugin.BITSPERSAMPLE] = (16,)
    fields[TiffImagePlugin.SAMPLESPERPIXEL] = (1,)
    fields[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] = (1,)
    for offsets, sizes in _PLACES.items():
        if offsets in tags:
            each = len(tags[offsets]) // count
            own = slice(number * each, (number + 1) * each)
            fields[offsets], fields[sizes] = tags[offsets][own], tags[sizes][own]
    order, start = "<" if content[:2] == b"II" else ">", len(content) + len(content) % 2
    whole = content[:4] + struct.pack(f"{order}I", start) + content[8:] + bytes(len(content) % 2)
    with Image.open(io.BytesIO(whole + _directory(fields, order, start))) as image:
        return np.asarray(image).astype(np.uint16)


def _directory(fields: dict[int, tuple[int, ...]], order: str, start: int) -> bytes:
    """A directory at byte `start`, with all its numbers of 32 bits."""
    long = 4
    entries, further = [struct.pack(f"{order}H", len(fields))], b""
    after = start + 2 + 12 * len(fields) + 4
    for tag, values in sorted(fields.items()):
        packed = struct.pack(f"{order}{len(values)}I", *values)
        if len(values) > 1:
            packed, further = struct.pack(f"{order}I", after + len(further)), further + packed
        entries.append(struct.pack(f"{order}HHI", tag, long, len(values)) + packed)
    return b"".join([*entries, bytes(4), further])
