"""The demonstration: one public-domain portrait, from 128 pixels to 16 and back."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from rich.table import Table

from faceprior.cli.progress import steps_progress
from faceprior.degradations import bicubic_downscale
from faceprior.devices import choose_device, choose_dtype
from faceprior.errors import FacePriorError, OutputError
from faceprior.faces import Points, align
from faceprior.images import to_pil, to_tensor, write_png
from faceprior.methods import DEFAULT_PRESET, find_preset
from faceprior.photographs import RestoredFace, RestoreOptions, how_made
from faceprior.photographs.results import doubt_picture, sheet
from faceprior.pipeline.face_prior import FacePriorPipeline
from faceprior.sampling import Step

ASTRONAUT_LANDMARKS: Points = ((204.2, 101.2), (247.0, 103.3), (225.0, 126.7), (205.0, 140.8), (243.8, 141.3))
"""Marked by hand in scikit-image's `astronaut` (NASA portrait of Eileen Collins, public domain), in pixels:
image-left eye, image-right eye, nose tip, image-left and image-right mouth corner."""

SCALE = 8
SAMPLES = 4
SEED = 0


def run_demo(output: Path) -> dict[str, dict[str, float]]:
    """Degrade, restore, write the pictures and return `RestoredFace.fidelity`.

    Raises:
        FacePriorError: scikit-image is not installed, or the folder cannot be written.
    """
    try:
        from skimage.data import astronaut
    except ImportError as error:
        raise FacePriorError("the demo's photograph comes with scikit-image: pip install scikit-image") from error
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{output}: cannot be made ({error.strerror}); choose another --output") from error

    device = choose_device()
    pipeline = FacePriorPipeline.from_pretrained().to(device, choose_dtype("auto", device))
    photo = Image.fromarray(astronaut())
    original = align(photo, ASTRONAUT_LANDMARKS, pipeline.prior.card.template, pipeline.resolution)
    sharp = to_tensor(original)
    low_resolution = bicubic_downscale(sharp[None], pipeline.resolution // SCALE)[0]
    preset = find_preset(DEFAULT_PRESET)

    def stepped(_step: Step, x_prev: torch.Tensor, _x0: torch.Tensor) -> torch.Tensor:
        progress.advance(len(x_prev))
        return x_prev

    with steps_progress(SAMPLES * pipeline.evaluations(preset)) as progress:
        generator = torch.Generator().manual_seed(SEED)
        images = pipeline.restore([low_resolution], [generator], SAMPLES, preset, SAMPLES, stepped)[0]
    doubt = pipeline.doubt([low_resolution], images[None])
    restored = RestoredFace(low_resolution, sharp, images, None if doubt is None else doubt[0])

    options = RestoreOptions(scale=SCALE, preset=preset, samples=SAMPLES, seed=SEED, degradation="bicubic")
    made = {**how_made(pipeline, options), "input": "skimage.data.astronaut", "scale": float(SCALE), "notes": []}
    samples = [to_pil(image) for image in images]
    write_png(output / "original.png", original)
    write_png(output / "low-resolution.png", to_pil(low_resolution))
    write_png(output / "bicubic.png", to_pil(restored.bicubic))
    write_png(output / "restored.png", samples[0], {**made, "content": "sample", "sample": 1})
    for name, picture in (
        ("samples", sheet([(f"sample {number}", sample) for number, sample in enumerate(samples, 1)])),
        ("sheet", restored.sheet()),
        *([("doubt", doubt_picture(restored.doubt))] if restored.doubt is not None else []),
    ):
        write_png(output / f"{name}.png", picture, {**made, "content": name, "samples": SAMPLES})
    return restored.fidelity()


def figures_table(figures: dict[str, dict[str, float]], title: str, samples: int) -> Table:
    """Lay out what `RestoredFace.fidelity` measures."""
    table = Table("", "PSNR (dB)", "SSIM", "LR consistency (dB)", title=title)
    for name in ("bicubic", "restored", "mean"):
        table.add_row(
            f"mean of {samples} samples" if name == "mean" else name,
            f"{figures['psnr'][name]:.2f}",
            f"{figures['ssim'][name]:.3f}",
            f"{figures['consistency'][name]:.1f}",
        )
    return table
