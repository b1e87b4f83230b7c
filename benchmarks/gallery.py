"""The pictures of docs/gallery.md: python -m benchmarks.gallery.

One public-domain portrait (scikit-image's `astronaut`, NASA), reduced or damaged in several ways and restored by the
presets, beside the corrector alone and the original.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image, ImageFilter, ImageOps
from skimage.data import astronaut

from faceprior import FacePriorPipeline
from faceprior.cli.demo import ASTRONAUT_LANDMARKS
from faceprior.faces import align
from faceprior.photographs.results import doubt_picture, sheet

Damage = Callable[[Image.Image], Image.Image]

METHODS = ("corrector", "faithful", "default", "detailed")
SEED = 0


def reduced(side: int) -> Damage:
    """Reduction to a side, in pixels."""
    return lambda face: face.resize((side, side), Image.Resampling.BICUBIC)


def compressed(face: Image.Image) -> Image.Image:
    """48 pixels, JPEG of quality 25."""
    file = io.BytesIO()
    reduced(48)(face).save(file, "JPEG", quality=25)
    return Image.open(file).convert("RGB")


def old(face: Image.Image) -> Image.Image:
    """A blurred sepia print with grain, scanned."""
    grey = reduced(128)(reduced(28)(face).convert("L"))
    grain = np.random.default_rng(SEED).normal(0, 12, (128, 128)).clip(-127, 127) + 128
    soft = Image.fromarray(grain.astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.7))
    grainy = (np.asarray(grey, np.int16) + np.asarray(soft, np.int16) - 128).clip(0, 255).astype(np.uint8)
    return ImageOps.colorize(Image.fromarray(grainy), "#2a1a0e", "#f4e6cf")


def printed(face: Image.Image) -> Image.Image:
    """The dots of a newspaper, at 45 degrees, six pixels apart, seen through a soft scan."""
    grey = np.asarray(reduced(384)(reduced(48)(face).convert("L")), np.float64)
    down, across = np.indices(grey.shape) * 2 * np.pi / 6
    screen = 127.5 + 60 * (np.cos((across + down) / np.sqrt(2)) + np.cos((across - down) / np.sqrt(2)))
    dots = Image.fromarray(np.where(grey > screen, 255, 0).astype(np.uint8))
    return reduced(128)(dots.filter(ImageFilter.GaussianBlur(1.5))).convert("RGB")


SHEETS: dict[str, dict[str, Damage]] = {
    "sizes": {f"{side} pixels": reduced(side) for side in (32, 16, 8)},
    "damage": {"JPEG": compressed, "old print": old, "newspaper": printed},
}


def main(
    output: Annotated[Path, typer.Option(help="Folder of the pictures.")] = Path("docs/images"),
    prior: Annotated[str, typer.Option(help="Prior, with a calibrated corrector.")] = "faces-128",
) -> None:
    """Write gallery-sizes.webp and gallery-damage.webp."""
    pipeline = FacePriorPipeline.from_pretrained(prior)
    pipeline.set_progress_bar_config(disable=True)
    photo = Image.fromarray(astronaut())
    original = align(photo, ASTRONAUT_LANDMARKS, pipeline.prior.card.template, pipeline.resolution)
    for name, rows in SHEETS.items():
        pictures = []
        for label, damage in rows.items():
            bad = damage(original)
            results = {method: pipeline(bad, generator=SEED, preset=method) for method in METHODS}
            pictures.append((label, bad))
            pictures += [(method, result.images[0]) for method, result in results.items()]
            doubt = results["default"].doubt
            pictures.append(("doubt of default", doubt_picture(torch.as_tensor(doubt[0]))))
            pictures.append(("original", original))
        path = output / f"gallery-{name}.webp"
        sheet(pictures, side=192, columns=len(METHODS) + 3).save(path, quality=85, method=6)
        print(path)


if __name__ == "__main__":
    typer.run(main)
