"""What a cold start costs, in new processes: python -m benchmarks.start_up."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median

import typer
from benchmarks.common import machine, run_faceprior, run_python, show, smooth_faces

from faceprior.images import to_pil


def main(runs: int = 5) -> None:
    """Measure importing, `--help`, loading the embedded networks, and the first face of `faceprior restore`."""
    print(machine())
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        face = Path(folder) / "face.png"
        to_pil(smooth_faces(1, 16)[0]).save(face)
        tasks = {
            "python": lambda: run_python(""),
            "import faceprior": lambda: run_python("import faceprior"),
            "faceprior --help": lambda: run_faceprior("--help"),
            "import torch": lambda: run_python("import torch"),
            "load the networks": lambda: run_python(
                "from faceprior import FacePriorPipeline; FacePriorPipeline.from_pretrained()"
            ),
            "the same with diffusers": lambda: run_python(
                "from faceprior.diffusers import FacePriorPipeline; FacePriorPipeline.from_pretrained()"
            ),
            "first face of faceprior restore": lambda: run_faceprior(
                "restore", str(face), "--aligned", "--output", str(Path(folder) / "restored")
            ),
        }
        for what, task in tasks.items():
            task()  # brings the files into the system's cache
            found = [task() for _ in range(runs)]
            rows.append((what, *(f"{median(own):.3g}" for own in zip(*found, strict=True))))
    show(f"Medians of {runs} processes", ("", "s", "CPU s", "peak MB"), rows)


if __name__ == "__main__":
    typer.run(main)
