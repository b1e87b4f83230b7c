"""How long the search for faces takes, in photographs of several sizes: python benchmarks/detection.py.

The photographs are scikit-image's astronaut in the middle of smooth noise, upright and upside down. Printed are
medians of seven runs: seconds of the processor on one core, and seconds on several cores that do nothing else,
reckoned from what each part of the search takes alone, so that a busy machine can measure them, too. Cores that
share their memory are somewhat slower.
"""

import argparse
import heapq
import time
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from skimage import data

from faceprior.faces import DetectedFace, load_detector
from faceprior.faces.detection import MIN_FACE
from faceprior.faces.search import find

arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
arguments.add_argument("--cores", type=int, default=2)
cores = arguments.parse_args().cores


def search(photo: Image.Image) -> tuple[list[DetectedFace], float, float]:
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


torch.set_num_threads(1)
detector, astronaut, rng = load_detector(), Image.fromarray(data.astronaut()), np.random.default_rng(0)
for width, height in ((4000, 3000), (1632, 1224), (816, 612)):
    scene = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    face = astronaut.resize((height * 3 // 4,) * 2, Image.Resampling.BICUBIC)
    scene.paste(face, ((width - face.width) // 2, (height - face.height) // 2))
    for name, photo in (("upright", scene), ("upside down", scene.rotate(180))):
        detector(photo)
        found, alone, together = zip(*(search(photo) for _ in range(7)), strict=True)
        print(
            f"{width * height / 1e6:.1f} MP, {name}: {len(found[0])} found,"
            f" {median(alone):.2f} s on one core, {median(together):.2f} s on {cores}",
            flush=True,
        )
