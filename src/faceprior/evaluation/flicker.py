"""Flicker: how much a face changes from frame to frame."""

from __future__ import annotations

import torch

from faceprior.images import to_uint8


def flicker(faces: torch.Tensor, next_faces: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of consecutive aligned faces.

    It counts what truly moves too: a mouth, or light. So it is to be compared with the input's own, or with that of
    the true faces.

    Args:
        faces: (B, 3, R, R) in [-1, 1], aligned.
        next_faces: the same faces in the next frame.

    Returns:
        (B,), in grey levels of 255, after rounding to uint8.
    """
    return (to_uint8(next_faces).float() - to_uint8(faces).float()).abs().mean((1, 2, 3))
