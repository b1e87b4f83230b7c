"""A picture that was read: what the networks see of it, and what a file written like it keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from faceprior.images.colour import colour_space

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

SUFFIXES = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "HEIF": (".heic", ".heif", ".hif"),
    "AVIF": (".avif",),
}
"""File name endings of the formats that can be written, the usual one first."""


def format_of(ending: str, otherwise: str = "") -> str:
    """Return the format that a file name's ending says, in Pillow's words; `otherwise` where none is written so."""
    return next((kind for kind, endings in SUFFIXES.items() if ending.lower() in endings), otherwise)


IMAGE_SUFFIXES = frozenset({".bmp", ".gif"}.union(*SUFFIXES.values()))
"""File name endings by which pictures are found in a folder; a file that is named is read whatever its ending."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture that was read.

    Attributes:
        image: upright 8-bit RGB in sRGB, transparency over white: what detection and the networks see.
        notes: what `image` leaves out of the file, in words: frames, depth, transparency.
        pixels: the file's own samples, upright, (H, W, C) uint8 or uint16; C is 1 for grey and 3 for colour.
        alpha: the file's own opacity, upright, (H, W) of the same type; None where there is none.
        format: the file's, in Pillow's words: "JPEG", "PNG", "HEIF", "GIF", …
        lossless: whether a lossy format holds its samples without loss (WebP only).
        icc_profile: the colour space of `pixels`; None for sRGB.
        exif: camera, date, place, …, with the orientation reset and without thumbnail.
        xmp: the file's XMP packet.
        dpi: pixels an inch, horizontally and vertically.
        lost: what `pixels` and `alpha` leave out of the file, in words; a file written like it cannot have it.
    """

    image: Image.Image
    notes: tuple[str, ...]
    pixels: NDArray[np.uint8] | NDArray[np.uint16]
    alpha: NDArray[np.uint8] | NDArray[np.uint16] | None
    format: str
    lossless: bool = False
    icc_profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    lost: tuple[str, ...] = ()

    @property
    def written_as(self) -> str:
        """The format of a file written like this one: its own, or PNG where that cannot be written."""
        return self.format if self.format in SUFFIXES else "PNG"

    def from_srgb(self, image: torch.Tensor) -> torch.Tensor:
        """Take a restored face, sRGB in [-1, 1], shape (3, H, W), to the colour space of `pixels`.

        It gets three equal channels where the file's profile is grey, and is returned itself where the file is sRGB.
        """
        space = colour_space(self.icc_profile) if self.icc_profile else None
        return image if space is None or space.is_srgb else space.encode(image)
