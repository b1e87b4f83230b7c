"""How steady the landmarks of small and turned faces are, and false alarms: python -m benchmarks.landmarks."""

from __future__ import annotations

import numpy as np
import typer
from benchmarks.common import show
from PIL import Image
from skimage import data

from faceprior.faces import load_detector

FACELESS = (
    *("coffee", "chelsea", "rocket", "brick", "grass", "gravel", "coins", "page", "text", "moon"),
    *("hubble_deep_field", "retina", "immunohistochemistry", "clock", "cell"),
)


def main(sides: str = "16,20,24,32") -> None:
    """Reduce scikit-image's astronaut, turn it and compare with what was found in the whole picture."""
    detector, astronaut = load_detector(), Image.fromarray(data.astronaut())
    whole = detector(astronaut)[0]
    known = np.array(whole.landmarks)
    apart = np.hypot(*(known[1] - known[0]))  # the eyes
    rows = []
    for pixels in map(int, sides.split(",")):
        factor = pixels / whole.side
        size, errors = round(512 * factor), dict[int, list[float]]()
        for turn in range(0, 360, 30):
            small = astronaut.resize((size, size), Image.Resampling.BICUBIC).rotate(
                -turn, Image.Resampling.BICUBIC, fillcolor=(120, 120, 120)
            )
            found = detector(small, min(pixels, 24) - 2)  # the box of a turned face may be a little smaller
            cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
            true = (known * factor - size / 2) @ np.array([[cos, sin], [-sin, cos]]) + size / 2
            error = np.hypot(*(np.array(found[0].landmarks) - true).T).mean() if found else np.nan
            errors.setdefault(turn % 90, []).append(100 * error / (apart * factor))
        rows.append((str(pixels), *(f"{np.mean(own):.0f}" for own in errors.values())))  # nan: one was not found
    show("Error, % of the distance between the eyes", ("side", "0°, 90°, …", "30°, 120°, …", "60°, 150°, …"), rows)
    pictures = (Image.fromarray(getattr(data, name)()).convert("RGB") for name in FACELESS)
    print("false alarms:", sum(len(detector(picture)) for picture in pictures), "in", len(FACELESS), "pictures")


if __name__ == "__main__":
    typer.run(main)
