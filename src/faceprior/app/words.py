"""Figures in plain words."""

from __future__ import annotations

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


def disagreement(spread: float, samples: int) -> str:
    """Say in a sentence what the mean spread of samples means.

    Args:
        spread: mean standard deviation on the scale of [0, 1] pixel values.
        samples: number of samples.
    """
    if samples == 1:
        return "With one sample nobody can tell which parts are known; ask for more samples."
    return (
        f"The {samples} samples differ by {_PEAK * spread:.1f} of 255 levels on average. Bright in the map is not"
        " known from the photo; dark need not be right either, for all samples share the prior's habits."
    )
