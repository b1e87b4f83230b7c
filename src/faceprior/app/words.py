"""What was found and what came out, in plain words."""

from __future__ import annotations

import torch

from faceprior.photographs import Face, Prepared

_PEAK = 255

AGREEMENT = (
    (40.0, "it says the same as the photo"),
    (34.0, "it stays close to the photo"),
    (28.0, "parts of it depart from the photo"),
)
"""LR consistency, in dB, from which a sentence holds; chosen by looking at restorations of the embedded prior."""

_FAR = "it departs from the photo: most of what you see is invented"


def agreement(lr_consistency: float) -> str:
    """Say in a sentence what an LR consistency in dB means."""
    levels = _PEAK * 10 ** (-lr_consistency / 20)
    amount = "less than 1" if levels < 1 else f"about {levels:.0f}"
    verdict = next((text for bound, text in AGREEMENT if lr_consistency >= bound), _FAR)
    return (
        f"Made small again, the face differs from the photo by {amount} of 255 levels of brightness"
        f" ({lr_consistency:.1f} dB): {verdict}."
    )


def doubt(half_width: torch.Tensor) -> str:
    """Say in a sentence what the half-widths of 90 % intervals mean.

    Args:
        half_width: (..., R, R), on the scale of [0, 1] pixel values.
    """
    half, tenth = (_PEAK * torch.quantile(half_width.flatten().float(), q).item() for q in (0.5, 0.9))
    return (
        f"With a probability of 90 % the true face is within ±{half:.0f} of 255 levels of what you see, on the darker"
        f" half of the map; on its brightest tenth it may be ±{tenth:.0f} and more away."
    )


def found(prepared: Prepared) -> str:
    """Say in a sentence which faces were found, and what can be done for them."""
    faces = prepared.faces
    if prepared.aligned:
        return "This picture is a face."
    if not faces:
        return "No face was found. Choose a photo in which a face is larger, or turned to the camera."
    alone = [face.left_alone for face in faces if face.left_alone is not None]
    if len(faces) == len(alone) == 1:
        return f"This face is {alone[0]}: there is nothing to restore."
    if len(faces) == len(alone):
        return f"All {len(faces)} faces are {' or '.join(sorted(set(alone)))}: there is nothing to restore."
    count = f"{len(faces)} faces were found" if len(faces) > 1 else "One face was found"
    return count + (f"; {len(alone)} of them stay as they are." if alone else ".")


def where(face: Face, width: int) -> str:
    """Say where a face stands in a photograph so many pixels wide, for someone who does not see it."""
    left, _, right, _ = face.found.box
    middle = (left + right) / 2 / width
    return "left" if middle < 0.35 else "right" if middle > 0.65 else "middle"
