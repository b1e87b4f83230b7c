"""CenterFace (Xu et al. 2019, arXiv 1911.03599), a face detection network that comes inside the package.

A MobileNetV2 (Sandler et al. 2018) whose maps at a quarter to a thirty-second of the picture's resolution are joined
from the coarsest up; every place of the finest says whether a face's centre is there, and where its box and its
landmarks are.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from faceprior.cores import on_cores
from faceprior.faces.detection import MIN_FACE, DetectedFace
from faceprior.faces.search import find

_STAGES = ((24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))  # channels, blocks, stride
_JOINED = (0, 1, 3, 5)  # stages whose maps are joined, at strides of 4, 8, 16 and 32
_WIDTH = 24  # channels of the joined maps
_STRIDE = 4  # of the finest map, in pixels
_EXPANSION = 6

_FIRST_SCORE = 0.15  # below it a place is no candidate
_SAME = 0.2  # places whose centres are nearer than this see the same face, in widths and heights of its box

# how far the network's landmarks stand from where the embedded prior's template has them (docs/photos.md), (x, y) in
# widths and heights of the box of an upright face
_OFFSETS = ((0.0, 0.021), (0.0, 0.021), (0.0, 0.006), (0.006, 0.0), (-0.006, 0.0))


class CenterFaceNetwork(nn.Module):
    """The network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_convolution(3, 32, 3, stride=2), _Block(32, 16, 1, expansion=1))
        self.stages, width = nn.ModuleList(), 16
        for channels, blocks, stride in _STAGES:
            first, others = _Block(width, channels, stride), (_Block(channels, channels) for _ in range(blocks - 1))
            self.stages.append(nn.Sequential(first, *others))
            width = channels
        self.lateral = nn.ModuleList(_convolution(_STAGES[stage][0], _WIDTH) for stage in _JOINED)
        self.up = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(_WIDTH, _WIDTH, 2, 2), nn.ReLU(inplace=True)) for _ in _JOINED[1:]
        )
        self.head = nn.Sequential(_convolution(_WIDTH, _WIDTH, 3), nn.Conv2d(_WIDTH, 15, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Look at pictures.

        Args:
            pixels: RGB in [0, 255], (B, 3, H, W).

        Returns:
            (B, 15, H/4, W/4), rounded up, for a face centred in that place: logit of its score; logarithm of the
            height and width of its box, in places; offset of its centre, down and right, in places; five landmarks,
            down and right from the box's corner, in heights and widths of the box.
        """
        x, maps = self.stem(pixels), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        *finer, joined = (lateral(maps[stage]) for lateral, stage in zip(self.lateral, _JOINED, strict=True))
        for up, own in zip(self.up, reversed(finer), strict=True):
            joined = up(joined)[..., : own.shape[2], : own.shape[3]] + own
        return self.head(joined)


class _Block(nn.Module):
    """Inverted residual block of MobileNetV2."""

    def __init__(self, width: int, channels: int, stride: int = 1, expansion: int = _EXPANSION) -> None:
        super().__init__()
        hidden = width * expansion
        self.body = nn.Sequential(
            *([_convolution(width, hidden)] if expansion > 1 else []),
            _convolution(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, channels, 1),
        )
        self.is_residual = stride == 1 and width == channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.is_residual else self.body(x)


def _convolution(width: int, channels: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, channels, kernel, stride, kernel // 2, groups=groups), nn.ReLU(inplace=True)
    )


class CenterFace:
    """Finds faces with CenterFace, the parts of a photograph side by side on the cores of a CPU."""

    name = "centerface"

    def __init__(self) -> None:
        weights = load_file(Path(str(files("faceprior"))) / "weights" / self.name / "model.safetensors")
        with torch.device("meta"):  # no numbers are drawn that these replace
            network = CenterFaceNetwork()
        network.load_state_dict({name: weight.float() for name, weight in weights.items()}, assign=True)
        network.eval().requires_grad_(requires_grad=False)
        self._network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, photo: Image.Image, min_face: int = MIN_FACE) -> list[DetectedFace]:
        """Find the faces of a photograph; see `FaceDetector`."""
        return find(self.look, photo, min_face, on_cores)

    def look(self, pictures: NDArray[np.uint8]) -> list[list[DetectedFace]]:
        """Find faces that are about upright; see `Look`."""
        pixels = torch.from_numpy(np.ascontiguousarray(pictures, np.float32))
        with torch.inference_mode():
            maps = self._network(pixels.permute(0, 3, 1, 2)).numpy()  # channels last, as they lie
        return [_faces(places) for places in maps]


def _faces(places: NDArray[np.float32]) -> list[DetectedFace]:
    """Read the faces off the network's answer for a picture, (15, H/4, W/4)."""
    with np.errstate(over="ignore"):
        scores = 1 / (1 + np.exp(-places[0]))
    rows, columns = np.nonzero(scores > _FIRST_SCORE)
    scores, (_, height, width, down, right, *points) = scores[rows, columns], places[:, rows, columns]
    corner = np.array([0.5, 0.5])[:, None]
    sides = _STRIDE * np.exp(np.stack([width, height]))  # (2, N)
    centres = _STRIDE * (np.stack([columns + right, rows + down]) + corner)
    landmarks = np.stack(points).reshape(5, 2, -1)[:, ::-1] - np.array(_OFFSETS)[:, :, None]
    landmarks = centres + (landmarks - corner) * sides  # (5, 2, N)
    found = []
    remaining = np.argsort(-scores)
    while len(
        remaining
    ):  # neighbouring places see the same face: the mean of what they say is steadier than the best
        best = remaining[0]
        same = (abs(centres[:, remaining] - centres[:, [best]]) < sides[:, [best]] * _SAME).all(0)
        group, remaining = remaining[same], remaining[~same]
        weights = scores[group] ** 2
        x, y = np.average(centres[:, group], 1, weights)
        half_width, half_height = np.average(sides[:, group], 1, weights) / 2
        found.append(
            DetectedFace(
                (x - half_width, y - half_height, x + half_width, y + half_height),
                [(float(a), float(b)) for a, b in np.average(landmarks[..., group], 2, weights)],
                float(scores[best]),
            )
        )
    return found
