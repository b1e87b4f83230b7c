"""How long the search for faces takes, in photographs of several sizes: python -m benchmarks.detection.

Seconds on several cores that do nothing else are reckoned from what each part of the search takes alone, so that a
busy machine can measure them, too. Cores that share their memory are somewhat slower.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

import numpy as np
import torch
import typer
from benchmarks.common import show
from PIL import Image
from skimage import data

from faceprior.faces import DetectedFace
from faceprior.faces.centerface import CenterFace
from faceprior.faces.detection import MIN_FACE
from faceprior.faces.search import find


def main(cores: int = 2, widths: str = "4000,1632,816", runs: int = 7) -> None:
    """Search for scikit-image's astronaut in the middle of smooth noise, 4:3, upright and upside down; medians."""
    torch.set_num_threads(1)
    detector, astronaut, rng = CenterFace(), Image.fromarray(data.astronaut()), np.random.default_rng(0)
    rows = []
    for width in map(int, widths.split(",")):
        height = width * 3 // 4
        noise = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8))
        scene = noise.resize((width, height), Image.Resampling.BICUBIC)
        face = astronaut.resize((height * 3 // 4,) * 2, Image.Resampling.BICUBIC)
        scene.paste(face, ((width - face.width) // 2, (height - face.height) // 2))
        for name, photo in (("upright", scene), ("upside down", scene.rotate(180))):
            detector(photo)
            found, alone, together = zip(*(_search(detector, photo, cores) for _ in range(runs)), strict=True)
            seconds = (f"{median(alone):.2f}", f"{median(together):.2f}")
            rows.append((f"{width * height / 1e6:.1f} MP, {name}", str(len(found[0])), *seconds))
    show("Seconds of a search", ("photograph", "faces found", "on one core", f"on {cores}"), rows)


def _search(detector: CenterFace, photo: Image.Image, cores: int) -> tuple[list[DetectedFace], float, float]:
    """Return the faces, and seconds on one core and on several."""
    begun, alone, together = time.thread_time(), 0.0, 0.0

    def each(function: Callable[..., Any], *columns: Iterable[Any]) -> list[Any]:
        nonlocal alone, together
        results, busy = list[Any](), [0.0] * cores
        for values in zip(*columns, strict=True):
            started = time.thread_time()
            results.append(function(*values))
            seconds = time.thread_time() - started
            alone += seconds
            heapq.heapreplace(busy, busy[0] + seconds)  # the core that is free first takes the next
        together += max(busy)
        return results

    faces = find(detector.look, photo, MIN_FACE, each)
    whole = time.thread_time() - begun
    return faces, whole, whole - alone + together


if __name__ == "__main__":
    typer.run(main)
