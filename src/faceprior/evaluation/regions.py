"""Regions of an aligned face: where the eyes, the mouth and the skin are, by the five landmarks of its template."""

from __future__ import annotations

from typing import NamedTuple

import torch

from faceprior.errors import OptionError
from faceprior.priors.card import Landmarks

REGIONS = ("eyes", "mouth", "skin")


class _Ellipse(NamedTuple):
    """Centre and half axes; the unit is the distance of the eyes, the origin lies between them, y points down."""

    x: float
    y: float
    across: float
    down: float

    def inside(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return ((x - self.x) / self.across).square() + ((y - self.y) / self.down).square() <= 1


# set by eye on the mean of the held-out faces and on single ones: with lids; with smiling lips
_EYE = (0.31, 0.17)
_BROW_ABOVE_EYE, _BROW = 0.26, (0.42, 0.16)
_NOSE_ABOVE_TIP, _NOSE = 0.02, (0.30, 0.20)
_MOUTH_BELOW_CORNERS, _MOUTH_BEYOND_CORNERS, _MOUTH_DOWN = 0.03, 0.10, 0.24
_OVAL = _Ellipse(0.0, 0.45, 0.88, 1.08)


def face_regions(template: Landmarks, side: int) -> dict[str, torch.Tensor]:
    """Return where eyes, mouth and skin stand in aligned faces: Boolean masks, (R, R), by the names of `REGIONS`.

    "eyes" are two ellipses around the eye landmarks, "mouth" is one that spans the mouth corners, "skin" the oval of
    the face without both, the brows and the tip of the nose, so cheeks, chin, bridge and lower forehead. The three
    share no pixel. All shapes are upright with the line through the eyes and scale with the eyes' distance.

    Args:
        template: where the landmarks stand (`ModelCard.template`); OptionError if it is empty.
        side: R of the faces, in pixels.
    """
    if not template:
        raise OptionError("regions of a face need the prior's alignment, and its card has no template")
    points = torch.tensor(template, dtype=torch.float64)
    across = points[1] - points[0]
    axes = torch.stack([across, torch.stack([-across[1], across[0]])]) / across.square().sum()
    origin = points[:2].mean(0)
    centres = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    places = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), dim=-1)  # (R, R, 2), x before y
    x, y = ((places - origin) @ axes.T).unbind(-1)
    (_, nose, *corners) = ((points[1:] - origin) @ axes.T).tolist()
    (left, right), mouth_y = (corners[0][0], corners[1][0]), (corners[0][1] + corners[1][1]) / 2

    def around_eyes(above: float, half_axes: tuple[float, float]) -> torch.Tensor:
        return _Ellipse(-0.5, -above, *half_axes).inside(x, y) | _Ellipse(0.5, -above, *half_axes).inside(x, y)

    eyes = around_eyes(0.0, _EYE)
    half_width = (right - left) / 2 + _MOUTH_BEYOND_CORNERS
    mouth = _Ellipse((left + right) / 2, mouth_y + _MOUTH_BELOW_CORNERS, half_width, _MOUTH_DOWN).inside(x, y)
    tip = _Ellipse(nose[0], nose[1] - _NOSE_ABOVE_TIP, *_NOSE).inside(x, y)
    skin = _OVAL.inside(x, y) & ~(eyes | around_eyes(_BROW_ABOVE_EYE, _BROW) | mouth | tip)
    return dict(zip(REGIONS, (eyes, mouth & ~eyes, skin), strict=True))
