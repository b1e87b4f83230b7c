"""Processor seconds of a photograph's three steps: python -m benchmarks.stages."""

from __future__ import annotations

import io
import itertools
import time

import typer
from benchmarks.common import load, machine, show
from PIL import Image
from skimage import data

from faceprior.faces import load_detector
from faceprior.photographs import RestoreOptions, compose, how_made, prepare, restore


def main(width: int = 4032, height: int = 3024, prior: str = "") -> None:
    """Prepare, restore and compose scikit-image's astronaut, once to warm up and once measured."""
    file = io.BytesIO()
    Image.fromarray(data.astronaut()).resize((width, height)).save(file, "JPEG", quality=90)
    pipeline, detector, options = load(prior), load_detector(), RestoreOptions()
    clock = list[float]()
    for _ in range(2):
        clock = [time.process_time()]
        prepared = prepare(file.getvalue(), "photo.jpg", pipeline.prior.card, options, detector)
        clock.append(time.process_time())
        samples = restore(pipeline, prepared.conditions, options)
        clock.append(time.process_time())
        composed = compose(prepared, samples, how_made(pipeline, options), options)
        clock.append(time.process_time())
    print(machine())
    seconds = [f"{after - before:.2f}" for before, after in itertools.pairwise(clock)]
    sizes = [f"{len(content) / 1e6:.1f}" for content in (file.getvalue(), composed.files[0].content)]
    columns = ("faces", "prepare, s", "restore, s", "compose, s", "MB in", "MB out")
    show("Processor seconds", columns, [(len(prepared.conditions), *seconds, *sizes)])


if __name__ == "__main__":
    typer.run(main)
