"""Black-and-white and toned pictures: their colour is a function of their brightness, and stays one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from PIL import Image

_LUMA = (0.299, 0.587, 0.114)
_NODES = 33
_SAMPLES = 1 << 16  # pixels that are looked at
_FEWEST = 4  # of them, to know the tone at a brightness
_STRAY = 3.0  # of 255, root of the mean square: sepia faces stray from their tone by 2, the palest in colour by 4


@dataclass(frozen=True, eq=False)
class Tone:
    """The mean colour that a picture has at each brightness: if it is toned, all its colours.

    Attributes:
        brightness: (N,), luma of 8-bit sRGB, rising.
        offset: (N, 3), what the red, green and blue have there more than the luma; 0 in black-and-white pictures.
    """

    brightness: NDArray[np.float64]
    offset: NDArray[np.float64]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Give images, sRGB in [-1, 1], shape (..., 3, H, W), this tone; their luma stays."""
        import torch

        colours = (images.detach().float().cpu().movedim(-3, -1).numpy() + 1) * 127.5
        toned = torch.from_numpy(self._of(colours @ _LUMA)).movedim(-1, -3) / 127.5 - 1
        return toned.to(images).clamp(-1, 1)

    def holds(self, face: torch.Tensor) -> bool:
        """Say whether the colours of a face, (3, n, n) in [-1, 1], keep to the tone: none is alive or tinted.

        It is to be no larger than its detail, so that averages have removed the noise.
        """
        colours = (face.detach().float().cpu().movedim(0, -1).numpy() + 1) * 127.5
        return float(np.sqrt(((colours - self._of(colours @ _LUMA)) ** 2).mean())) < _STRAY

    def _of(self, luma: NDArray[Any]) -> NDArray[np.float64]:
        return np.stack([luma + np.interp(luma, self.brightness, own) for own in self.offset.T], axis=-1)


def tone_of(image: Image.Image) -> Tone:
    """Return the tone of an 8-bit sRGB image."""
    pixels = np.asarray(image).reshape(-1, 3)
    colours = pixels[:: max(1, len(pixels) // _SAMPLES)].astype(np.float64)
    luma = colours @ _LUMA
    node = np.rint(luma * ((_NODES - 1) / 255)).astype(int)
    count = np.bincount(node, minlength=_NODES)
    known = count >= min(_FEWEST, count.max())
    sums = [np.bincount(node, values, _NODES)[known] for values in (luma, *(colours - luma[:, None]).T)]
    brightness, *offset = (total / count[known] for total in sums)
    return Tone(brightness, np.stack(offset, axis=-1))
