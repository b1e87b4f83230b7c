"""Colour spaces of files: to sRGB for the networks, and restored faces back into the file's own.

Pillow's LittleCMS converts 8-bit samples; relative colorimetric with black point compensation in both directions.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import torch

_MODES: dict[str, Literal["RGB", "L", "CMYK"]] = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_NODES = 52  # a side of the colour cube: 255 = 51 · 5, so that every node is a whole 8-bit value
_SAME = 2  # of 255: profiles that change no colour by more are sRGB under another name


@dataclass(frozen=True, eq=False)
class ColourSpace:
    """What an ICC profile means.

    Attributes:
        mode: of the images that it describes, in Pillow's words.
        to_srgb: takes an image of that mode to 8-bit sRGB.
        from_srgb: takes 8-bit sRGB to an image of that mode; None for CMYK and for profiles that work one way
            only, such as a scanner's.
    """

    mode: Literal["RGB", "L", "CMYK"]
    to_srgb: Callable[[Image.Image], Image.Image]
    from_srgb: Callable[[Image.Image], Image.Image] | None

    @cached_property
    def is_srgb(self) -> bool:
        """Whether the profile leaves sRGB values as they are."""
        if self.mode != "RGB":
            return False
        colours = _cube(9)
        change = np.asarray(self.to_srgb(colours)).astype(int) - np.asarray(colours)
        return int(abs(change).max()) <= _SAME

    @cached_property
    def _table(self) -> torch.Tensor:
        """The file's own values for a cube of sRGB colours, in [-1, 1], shape (1, 3, red, green, blue)."""
        import torch

        if self.from_srgb is None:
            raise ValueError("a colour space that cannot be written")
        own = self.from_srgb(_cube(_NODES)).convert("RGB")
        values = torch.from_numpy(np.array(own)).float().reshape(_NODES, _NODES, _NODES, 3) / 127.5 - 1.0
        return values.permute(3, 0, 1, 2)[None].contiguous()

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Take an sRGB image in [-1, 1], shape (3, H, W), to this space; grey spaces give three equal channels.

        Between the cube's nodes the table is interpolated, so that 16-bit files see no steps of 8 bits.
        """
        import torch.nn.functional as F

        # grid_sample wants the last axis of the table (blue) first
        colours = image.float().clamp(-1, 1).flip(0).permute(1, 2, 0)[None, None]  # (1, 1, H, W, 3)
        return F.grid_sample(self._table.to(image.device), colours, align_corners=True)[0, :, 0]


@lru_cache(maxsize=16)  # the pictures of a folder share a profile or two
def colour_space(icc_profile: bytes) -> ColourSpace | None:
    """Return what a profile means, or None where LittleCMS cannot use it."""
    from PIL import ImageCms

    intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
        mode = _MODES.get(profile.profile.xcolor_space.strip())
        if mode is None:
            return None
        srgb = ImageCms.createProfile("sRGB")
        forward = ImageCms.buildTransform(profile, srgb, mode, "RGB", intent, flags=flags)
    except (ImageCms.PyCMSError, OSError, ImportError, TypeError, ValueError):
        return None
    backward = None
    if mode != "CMYK":
        try:
            backward = ImageCms.buildTransform(srgb, profile, "RGB", mode, intent, flags=flags)
        except (ImageCms.PyCMSError, OSError, ValueError):
            backward = None
    return ColourSpace(mode, forward.apply, backward.apply if backward else None)


def _cube(nodes: int) -> Image.Image:
    steps = np.linspace(0, 255, nodes).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1)  # (red, green, blue, 3)
    return Image.fromarray(cube.reshape(nodes, nodes * nodes, 3))
