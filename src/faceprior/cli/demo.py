"""The demonstration: one public-domain portrait, from 128 pixels to 16 and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from faceprior.cli import options
from faceprior.cli.console import console, say

ASTRONAUT_LANDMARKS = ((204.2, 101.2), (247.0, 103.3), (225.0, 126.7), (205.0, 140.8), (243.8, 141.3))
"""Marked by hand in scikit-image's `astronaut` (NASA portrait of Eileen Collins, public domain), in pixels:
image-left eye, image-right eye, nose tip, image-left and image-right mouth corner."""

_SAMPLES = 4


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pictures.")] = Path("demo"),
) -> None:
    """Restore a photograph of an astronaut from 16×16 pixels on the embedded prior, and measure it."""
    from PIL import Image

    from faceprior.cli.progress import restore_progress
    from faceprior.errors import FacePriorError
    from faceprior.faces import align
    from faceprior.folders.inputs import Input
    from faceprior.folders.outputs import make_folder
    from faceprior.folders.run import restore_files
    from faceprior.images import write_png
    from faceprior.photographs import RestoreOptions

    try:
        from skimage.data import astronaut
    except ImportError as error:
        raise FacePriorError("the demo's photograph comes with scikit-image: pip install scikit-image") from error
    make_folder(output)
    pipeline = options.load_pipeline(None, None, "auto", "auto", "auto")
    face = align(Image.fromarray(astronaut()), ASTRONAUT_LANDMARKS, pipeline.prior.card.template, pipeline.resolution)
    write_png(output / "original.png", face)
    how = RestoreOptions(kind="aligned", degradation="bicubic", scale=8, samples=_SAMPLES, write_sheet=True)
    inputs = [Input(output / "original.png")]
    with restore_progress(1, _SAMPLES * pipeline.evaluations(how.preset), quiet=False) as watcher:
        (record,) = restore_files(pipeline, inputs, output, how, name="restored", watcher=watcher)
    if record["status"] == "failed":
        raise FacePriorError(record["error"])
    table = Table("", "PSNR (dB)", "SSIM", "LR consistency (dB)", title="against the original")
    for name, label in (("bicubic", "bicubic"), ("restored", "restored"), ("mean", f"mean of {_SAMPLES} samples")):
        psnr, ssim, consistency = (record[figure][name] for figure in ("psnr", "ssim", "consistency"))
        table.add_row(label, f"{psnr:.2f}", f"{ssim:.3f}", f"{consistency:.1f}")
    console.print(table)
    say(console, f"Look at {output / 'restored-sheet.png'}; the single pictures are in {output}/.")
