"""PNG with 16-bit colour, and TIFF: what Pillow reads but does not write.

Only the samples are laid out here; chunks and tags around them are Pillow's.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image, TiffImagePlugin
from PIL.PngImagePlugin import putchunk

from faceprior.images.png_colour import chunks

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PNG_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}  # channels: PNG's number for them
_PNG_SIGNATURE = 8
_SUB = 1
_BLOCK_BYTES = 1 << 22


def write_deep_png(file: IO[bytes], samples: NDArray[np.uint16], **options: Any) -> None:
    """Write (H, W, C) 16-bit samples, C from 1 (grey) to 4 (RGB with opacity), as PNG; `options` are Pillow's."""
    height, width, channels = samples.shape
    around = io.BytesIO()
    Image.new("L" if channels < 3 else "RGB", (1, 1)).save(around, format="PNG", **options)
    file.write(around.getvalue()[:_PNG_SIGNATURE])
    for kind, data in chunks(around.getvalue()):
        if kind == b"IHDR":
            putchunk(file, kind, struct.pack(">IIBBBBB", width, height, 16, _PNG_COLOURS[channels], 0, 0, 0))
        elif kind == b"IDAT":
            compressor = zlib.compressobj()
            for rows in _blocks(samples):
                putchunk(file, kind, compressor.compress(_png_rows(rows)))
            putchunk(file, kind, compressor.flush())
        else:
            putchunk(file, kind, data)


def write_tiff(file: IO[bytes], samples: NDArray[Any], tags: dict[int, Any]) -> None:
    """Write (H, W, C) samples of 8 or 16 bits, C from 1 (grey) to 4 (RGB with opacity), as deflated TIFF.

    Of the further tags, dictionaries become directories of their own.
    """
    height, width, channels = samples.shape
    strips = [zlib.compress(_tiff_rows(rows)) for rows in _blocks(samples)]
    sizes = [len(strip) for strip in strips]
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        directory[tag] = value
    directory[TiffImagePlugin.IMAGEWIDTH] = width
    directory[TiffImagePlugin.IMAGELENGTH] = height
    directory[TiffImagePlugin.BITSPERSAMPLE] = (8 * samples.itemsize,) * channels
    directory[TiffImagePlugin.COMPRESSION] = 8  # Adobe deflate
    directory[TiffImagePlugin.PREDICTOR] = 2  # horizontal differences
    directory[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] = 1 if channels < 3 else 2
    directory[TiffImagePlugin.SAMPLESPERPIXEL] = channels
    directory[TiffImagePlugin.ROWSPERSTRIP] = _rows_of_a_block(samples)
    directory[TiffImagePlugin.STRIPBYTECOUNTS] = tuple(sizes)
    directory[TiffImagePlugin.STRIPOFFSETS] = tuple(sum(sizes[:number]) for number in range(len(sizes)))
    if channels in (2, 4):
        directory[TiffImagePlugin.EXTRASAMPLES] = 2  # opacity that the colours are not multiplied with
    directory.save(file)
    for strip in strips:
        file.write(strip)


def _rows_of_a_block(samples: NDArray[Any]) -> int:
    return max(1, min(len(samples), _BLOCK_BYTES // max(1, samples[0].nbytes)))


def _blocks(samples: NDArray[Any]) -> list[NDArray[Any]]:
    step = _rows_of_a_block(samples)
    return [samples[first : first + step] for first in range(0, len(samples), step)]


def _png_rows(samples: NDArray[np.uint16]) -> bytes:
    pixels = samples.astype(">u2").view(np.uint8).reshape(len(samples), samples.shape[1], -1)  # (rows, W, bytes)
    rows = np.empty((len(samples), 1 + pixels[0].size), np.uint8)
    rows[:, 0] = _SUB
    rows[:, 1:] = np.diff(pixels, axis=1, prepend=np.zeros_like(pixels[:, :1])).reshape(len(samples), -1)
    return rows.tobytes()


def _tiff_rows(samples: NDArray[Any]) -> bytes:
    differences = np.diff(samples, axis=1, prepend=np.zeros_like(samples[:, :1]))
    return differences.astype(samples.dtype.newbyteorder("<")).tobytes()
