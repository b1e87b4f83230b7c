"""The demonstration: one public-domain portrait, from 128 pixels to 16 and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rich.table import Table
from typer import Option

from faceprior.cli import options
from faceprior.cli.console import console, say

ASTRONAUT_LANDMARKS = ((204.2, 101.2), (247.0, 103.3), (225.0, 126.7), (205.0, 140.8), (243.8, 141.3))
"""Marked by hand in scikit-image's `astronaut` (NASA portrait of Eileen Collins, public domain), in pixels:
image-left eye, image-right eye, nose tip, image-left and image-right mouth corner."""

_SCALE, _SAMPLES = 8, 4


def demo(
    output: Annotated[Path, Option("--output", "-o", help="Folder for the pictures.")] = Path("demo"),
) -> None:
    """Restore a photograph of an astronaut from 16×16 pixels on the embedded prior, and measure it."""
    from PIL import Image

    from faceprior.cli.progress import restore_progress
    from faceprior.degradations import bicubic_downscale
    from faceprior.errors import FacePriorError
    from faceprior.evaluation.metrics import lr_consistency, psnr, ssim
    from faceprior.faces import align
    from faceprior.folders.inputs import Input
    from faceprior.folders.outputs import make_folder
    from faceprior.folders.run import restore_files
    from faceprior.images import read_image, resize, to_pil, to_tensor, write_png
    from faceprior.photographs import RestoreOptions
    from faceprior.photographs.results import sheet

    try:
        from skimage.data import astronaut
    except ImportError as error:
        raise FacePriorError("the demo's photograph comes with scikit-image: pip install scikit-image") from error
    make_folder(output)
    pipeline = options.load_pipeline()
    side = pipeline.resolution
    face = align(Image.fromarray(astronaut()), ASTRONAUT_LANDMARKS, pipeline.prior.card.template, side)
    original = to_tensor(face)[None]
    small = bicubic_downscale(original, side // _SCALE)
    pictures = {"original": face, "input": to_pil(small[0]), "bicubic": to_pil(resize(small, side)[0])}
    for name, picture in pictures.items():
        write_png(output / f"{name}.png", picture)
    how = RestoreOptions(kind="aligned", scale=_SCALE, samples=_SAMPLES)
    with restore_progress(1, _SAMPLES * pipeline.evaluations(how.preset), quiet=False) as watcher:
        inputs = [Input(output / "input.png")]
        (record,) = restore_files(pipeline, inputs, output, how, name="restored", watcher=watcher)
    if record["status"] == "failed":
        raise FacePriorError(record["error"])
    mean = f"mean of {_SAMPLES} samples"
    for label, suffix in {"restored": "", "another sample": "-2", mean: "-mean", "doubt": "-doubt"}.items():
        pictures[label] = read_image(output / f"restored{suffix}.png")
    write_png(output / "restored-sheet.png", sheet(list(pictures.items())))
    table = Table("", "PSNR (dB)", "SSIM", "LR consistency (dB)", title="against the original")
    for label in ("bicubic", "restored", mean):
        result = to_tensor(pictures[label])[None]
        fidelity, likeness, agreement = psnr(result, original), ssim(result, original), lr_consistency(result, small)
        table.add_row(label, f"{fidelity.item():.2f}", f"{likeness.item():.3f}", f"{agreement.item():.1f}")
    console.print(table)
    say(console, f"Look at {output / 'restored-sheet.png'}; the single pictures are in {output}/.")
