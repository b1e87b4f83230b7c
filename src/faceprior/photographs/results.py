"""What a restoration says about itself: agreement, disagreement, and everything side by side on a sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from faceprior.evaluation.metrics import EXACT, lr_consistency
from faceprior.images import resize, to_pil

_MARGIN, _LABEL = 8, 22
_LABEL_SIZE = 13

DOUBT_WHITE = 96 / 255
"""Half-width that has the brightest colour, on the scale of [0, 1] pixel values."""

# dark to bright, also for those who do not see all colours; the page's style has the same
_DOUBT_COLOURS = ((13, 8, 60), (106, 0, 168), (204, 71, 120), (248, 149, 64), (240, 249, 33))


@dataclass(frozen=True)
class RestoredFace:
    """One face and its restorations; all tensors in [-1, 1].

    Attributes:
        low_resolution: the input, (3, n, n).
        images: N samples, (N, 3, R, R).
        mean: of the samples (`faceprior.pipeline.Samples`), (3, R, R).
        doubt: half-width of an interval around the first sample that holds the true pixel with a probability of 90 %,
            (R, R) on the scale of [0, 1] pixel values; None where it is not known.
    """

    low_resolution: torch.Tensor
    images: torch.Tensor
    mean: torch.Tensor
    doubt: torch.Tensor | None = None

    @cached_property
    def bicubic(self) -> torch.Tensor:
        """Bicubic enlargement of the input, (3, R, R)."""
        return resize(self.low_resolution[None], self.images.shape[-1])[0].clamp(-1, 1)

    @property
    def scale(self) -> float:
        """R / n."""
        return self.images.shape[-1] / self.low_resolution.shape[-1]

    @cached_property
    def lr_consistency(self) -> list[float]:
        """Agreement of each sample with the input, PSNR in dB, at most `EXACT`."""
        inputs = self.low_resolution.expand(len(self.images), -1, -1, -1)
        return lr_consistency(self.images, inputs).clamp(max=EXACT).tolist()

    def pictures(self) -> list[tuple[str, Image.Image]]:
        """What stands on the sheet: label and picture."""
        side = self.low_resolution.shape[-1]
        pictures = [(f"input, {side} x {side}", to_pil(self.low_resolution)), ("bicubic", to_pil(self.bicubic))]
        for number, image in enumerate(self.images, 1):
            pictures.append(("restored" if number == 1 else f"sample {number}", to_pil(image)))
        if len(self.images) > 1:
            pictures.append((f"mean of {len(self.images)} samples", to_pil(self.mean)))
        if self.doubt is not None:
            pictures.append((f"doubt: bright is ±{255 * DOUBT_WHITE:.0f} of 255", doubt_picture(self.doubt)))
        return pictures


def sheet(pictures: Sequence[tuple[str, Image.Image]], side: int = 256, columns: int = 4) -> Image.Image:
    """Lay pictures out in a grid, each with its label underneath.

    Args:
        pictures: label and picture; pictures are enlarged to squares of `side` without smoothing.
        side: of a picture, in pixels.
        columns: pictures in a row.
    """
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    cell_width, cell_height = side + _MARGIN, side + _LABEL + _MARGIN
    canvas = Image.new("RGB", (columns * cell_width + _MARGIN, rows * cell_height + _MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(_LABEL_SIZE)
    for index, (label, picture) in enumerate(pictures):
        left = _MARGIN + index % columns * cell_width
        top = _MARGIN + index // columns * cell_height
        canvas.paste(picture.convert("RGB").resize((side, side), Image.Resampling.NEAREST), (left, top))
        draw.text((left + side / 2, top + side + 3), label, fill="black", font=font, anchor="ma")
    return canvas


def doubt_picture(half_width: torch.Tensor) -> Image.Image:
    """Draw half-widths (R, R), on the scale of [0, 1] pixel values: dark is sure, bright is not known."""
    levels = (half_width.float().cpu().numpy() / DOUBT_WHITE).clip(0, 1)
    places = np.linspace(0, 1, len(_DOUBT_COLOURS))
    channels = [np.interp(levels, places, channel) for channel in zip(*_DOUBT_COLOURS, strict=True)]
    return Image.fromarray(np.stack(channels, -1).round().astype(np.uint8))
