"""What one writing in each format costs: python -m benchmarks.formats."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import typer
from benchmarks.common import show
from PIL import Image
from skimage import data

from faceprior.images import FORMATS, encode_picture, read_picture, write_file


def main() -> None:
    """Write scikit-image's astronaut and read it again."""
    pixels, rows = data.astronaut(), []
    with tempfile.TemporaryDirectory() as folder:
        source, written = Path(folder, "in.png"), Path(folder, "out")
        Image.fromarray(pixels).save(source)
        picture = read_picture(source)
        for kind in FORMATS:
            write_file(written, encode_picture(pixels, picture, file_format=kind))
            error = read_picture(written).pixels.astype(float) - pixels
            psnr = 10 * np.log10(255**2 / (error**2).mean()) if error.any() else np.inf
            rows.append((kind, f"{written.stat().st_size / 1024:.0f}", f"{psnr:.1f}", f"{abs(error).max():.0f}"))
    show("One writing", ("format", "KiB", "PSNR, dB", "largest difference"), rows)


if __name__ == "__main__":
    typer.run(main)
