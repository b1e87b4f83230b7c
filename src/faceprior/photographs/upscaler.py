"""A network of the user's own that enlarges a photograph around its faces, instead of Lanczos."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from faceprior.errors import FacePriorError, OptionError, WeightsError
from faceprior.faces.paste import check_enlarged, resized

_TILE, _MARGIN = 256, 16  # pixels a side that go through the network at once, and around them


@dataclass(frozen=True, eq=False)
class Upscaler:
    """Enlarges by a network, and from there by Lanczos to the size that is wanted.

    Attributes:
        name: of its file.
        sha256: of its file.
        scale: by how much the network enlarges.
        network: (1, 3, H, W) in [0, 1] to (1, 3, scale·H, scale·W).
    """

    name: str
    sha256: str
    scale: int
    network: Callable[[torch.Tensor], torch.Tensor]

    def __call__(self, photo: NDArray[Any], factor: int) -> NDArray[Any]:
        """Enlarge a photograph; its depth and channels are kept.

        Args:
            photo: (H, W, C), uint8 or uint16, C = 1 or 3.
            factor: whole number; 1 returns the photograph itself.

        Raises:
            ImageError: the result is too large.
        """
        if factor == 1:
            return photo
        check_enlarged(photo, max(factor, self.scale))
        height, width, channels = photo.shape
        large = np.empty((height * self.scale, width * self.scale, channels), photo.dtype)
        for top in range(0, height, _TILE):
            for left in range(0, width, _TILE):
                self._tile(photo, large, top, left)
        return resized(large, (width * factor, height * factor))

    def _tile(self, photo: NDArray[Any], large: NDArray[Any], top: int, left: int) -> None:
        y, x = max(0, top - _MARGIN), max(0, left - _MARGIN)
        piece = photo[y : top + _TILE + _MARGIN, x : left + _TILE + _MARGIN]
        peak = float(np.iinfo(photo.dtype).max)
        tensor = torch.from_numpy(piece.astype(np.float32) / peak).permute(2, 0, 1)[None]
        with torch.inference_mode():
            out = self.network(tensor.expand(-1, 3, -1, -1))[0].clamp(0, 1)
        if photo.shape[2] == 1:
            out = out.mean(0, keepdim=True)
        pixels = (out * peak).round().permute(1, 2, 0).numpy().astype(photo.dtype)
        scale, (height, width) = self.scale, photo[top : top + _TILE, left : left + _TILE].shape[:2]
        inner = pixels[(top - y) * scale :, (left - x) * scale :][: height * scale, : width * scale]
        large[top * scale :, left * scale :][: height * scale, : width * scale] = inner


@lru_cache(maxsize=1)
def load_upscaler(path: Path) -> Upscaler:
    """Load the network of a safetensors file that spandrel knows.

    Raises:
        FacePriorError: spandrel is not installed.
        OptionError: the file is no safetensors file.
        WeightsError: it cannot be read, or holds no network that enlarges colour pictures.
    """
    if path.suffix != ".safetensors":
        raise OptionError(
            f"{path}: an upscaler is read from a .safetensors file only, for others can run programs; convert it"
        )
    try:
        from spandrel import ImageModelDescriptor, ModelLoader
    except ImportError as error:
        raise FacePriorError(f"--upscaler needs spandrel ({error}): pip install spandrel") from error
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}); check the name") from error
    try:
        loaded = ModelLoader(device="cpu").load_from_file(path)
    except Exception as error:  # spandrel raises anything on a file that it does not know
        raise WeightsError(f"{path}: is no network that spandrel knows ({error}); choose another file") from error
    if not isinstance(loaded, ImageModelDescriptor) or (loaded.input_channels, loaded.output_channels) != (3, 3):
        raise WeightsError(f"{path}: does not enlarge colour pictures; choose another file")
    return Upscaler(path.name, hashlib.sha256(content).hexdigest(), loaded.scale, loaded.eval())
