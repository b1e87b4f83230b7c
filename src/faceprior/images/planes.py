"""16-bit TIFFs whose colours lie in planes, one after the other; Pillow misreads them: they are interleaved first."""

from __future__ import annotations

import io

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

    Each plane is shown to Pillow as a grey picture of its own: the same file with another directory. Raises
    ValueError where samples are not 16-bit unsigned integers, or the file is larger than 4 GB.
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
    plane = TiffImagePlugin.ImageFileDirectory_v2(content[:8])
    for tag in _PLANE & tags.keys():
        plane[tag] = tags[tag]
    plane[TiffImagePlugin.BITSPERSAMPLE] = 16
    plane[TiffImagePlugin.SAMPLESPERPIXEL] = 1
    plane[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] = 1
    for offsets, sizes in _PLACES.items():
        if offsets in tags:
            each = len(tags[offsets]) // count
            own = slice(number * each, (number + 1) * each)
            plane[offsets], plane[sizes] = tags[offsets][own], tags[sizes][own]
    if TiffImagePlugin.TILEOFFSETS in plane:  # the old file follows the directory; of strips Pillow adds its length
        start = 8 + len(plane.tobytes(8))
        plane[TiffImagePlugin.TILEOFFSETS] = tuple(start + place for place in plane[TiffImagePlugin.TILEOFFSETS])
    with io.BytesIO() as file:
        plane.save(file)
        file.write(content)
        with Image.open(file) as image:
            return np.asarray(image).astype(np.uint16)
