"""What a blind corrector is trained on: every kind of damage, and none, at the face's own resolution."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from faceprior.degradations import (
    CHAIN_PRESETS,
    bicubic_downscale,
    film_grain,
    grey,
    halftone,
    jpeg,
    real_world,
    scratch,
    second_order,
)
from faceprior.images import resize

_CHAINS = tuple(CHAIN_PRESETS[name] for name in ("gfpgan", "codeformer", "diffbir"))
_SEPIA = (0.9, 0.2, -0.4)  # a tint, in units of its strength


def reframed(face: torch.Tensor, framing: Sequence[float], generator: torch.Generator) -> torch.Tensor:
    """Draw how closely a face is framed; what lies outside its picture is the picture's mirror image.

    Args:
        face: (3, R, R) in [-1, 1].
        framing: widest and closest, drawn log-uniformly between them; 1 is the picture as it is.
        generator: source of the draw; it is not used where both are 1.
    """
    widest, closest = framing
    if widest == closest == 1:
        return face
    side = face.shape[-1]
    share = float(torch.rand((), generator=generator))
    edge = round((side - side / (widest ** (1 - share) * closest**share)) / 2)  # below 0 it is added
    if edge < 0:
        return resize(F.pad(face[None], [-edge] * 4, mode="reflect"), side)[0].clamp(-1, 1)
    return resize(face[None, :, edge : side - edge, edge : side - edge], side)[0].clamp(-1, 1)


def blind(
    face: torch.Tensor,
    generator: torch.Generator,
    scales: tuple[float, float],
    *,
    damaged: float,
    framing: tuple[float, float] = (1.0, 1.0),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a framing, a kind of damage and its strength for one face.

    Args:
        face: (3, R, R) in [-1, 1], on the CPU.
        generator: source of all draws.
        scales: smallest and largest reduction; drawn log-uniformly.
        damaged: share of faces with more than a clean bicubic reduction, 0 to 1.
        framing: see `reframed`.

    Returns:
        The face to be restored, grey or toned if the damaged one is, and the damaged one, (3, R, R) both.
    """
    face = reframed(face, framing, generator)

    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    side = face.shape[-1]
    tone = draw(0, 1)
    if tone < 0.12:
        face = grey(face)
    if tone < 0.04:
        tint = face.new_tensor(_SEPIA).view(3, 1, 1) * draw(0.1, 0.4)
        face = (face + tint * (1 - face.square())).clamp(-1, 1)
    scale = math.exp(draw(*(math.log(bound) for bound in scales)))
    kind = draw(0, 1)
    if kind >= damaged:
        return face, _reduced(face, scale)
    if kind < 0.6 * damaged:
        chain = int(draw(0, len(_CHAINS) + 1))
        bad = second_order(face, generator) if chain == len(_CHAINS) else real_world(face, _CHAINS[chain], generator)
        # half of them are small pictures besides
        return face, _reduced(bad, math.exp(draw(0, math.log(max(scales))))) if draw(0, 1) < 0.5 else bad
    return face, _old(face, min(scale, side / 8), draw, generator)


def _reduced(face: torch.Tensor, scale: float) -> torch.Tensor:
    side = face.shape[-1]
    return resize(bicubic_downscale(face[None], max(4, round(side / scale))), side)[0].clamp(-1, 1)


def _old(
    face: torch.Tensor, scale: float, draw: Callable[[float, float], float], generator: torch.Generator
) -> torch.Tensor:
    """Reduce a face, enlarge it by a rule of its own, then print, scan, scratch and compress it."""
    side = face.shape[-1]
    small = bicubic_downscale(face[None], max(8, round(side / scale)))
    enlargement = draw(0, 1)
    if enlargement < 0.3:
        bad = F.interpolate(small, size=(side, side), mode="nearest")[0]
    elif enlargement < 0.5:
        bad = F.interpolate(small, size=(side, side), mode="bilinear", align_corners=False)[0]
    else:
        bad = resize(small, side)[0]
    if draw(0, 1) < 0.5:
        bad = film_grain(bad, draw(0.005, 0.1), draw(0, 1.2), generator)
    elif draw(0, 1) < 0.5:
        bad = halftone(bad, draw(2.5, 8), draw(0.05, 0.4), generator)
    if draw(0, 1) < 0.15:
        bad = scratch(bad.clamp(-1, 1), generator)
    if draw(0, 1) < 0.4:
        bad = jpeg(bad.clamp(-1, 1), round(draw(30, 95)))
    return bad.clamp(-1, 1)
