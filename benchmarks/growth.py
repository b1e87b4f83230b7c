"""How time and memory grow with the batch, the side and the folder: python -m benchmarks.growth."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from benchmarks.common import load, machine, run_faceprior, show, smooth_faces
from torch.utils.benchmark import Timer

from faceprior.benchmark.memory import PeakMemory
from faceprior.images import to_pil
from faceprior.methods import find_preset

Point = tuple[float, float, float]
"""Size, seconds, peak MB."""


def main(
    batches: Annotated[str, typer.Option(help="Faces a batch; none leaves it out.")] = "1,2,4,8,16,32,64",
    sides: Annotated[str, typer.Option(help="Pixels a side, multiples of 8.")] = "64,96,128,192,256",
    folders: Annotated[str, typer.Option(help="Faces a folder.")] = "10,100,1000",
    prior: str = "",
    steps: int = 2,
    method: Annotated[str, typer.Option(help="Of the folders.")] = "lanczos",
) -> None:
    """Measure, and fit seconds = fixed + factor · size^power."""
    print(machine())
    for what, sizes, points in (
        ("pixels a side", sides, lambda sizes: (restore(f"random:{side}", 1, steps, side) for side in sizes)),
        ("faces a batch", batches, lambda sizes: (restore(prior, count, steps, count) for count in sizes)),
        ("faces a folder", folders, lambda sizes: folder_runs(sizes, method)),
    ):
        if not sizes:
            continue
        found = list(points([int(size) for size in sizes.split(",")]))
        power = fit([size for size, *_ in found], [seconds for _, seconds, _ in found])
        rows = [(f"{size}", f"{seconds:.3g}", f"{seconds / size:.3g}", f"{mb:.0f}") for size, seconds, mb in found]
        show(f"Time grows with the power {power:.2f}", (what, "s", "s each", "peak MB"), rows)


def restore(prior: str, count: int, steps: int, size: int) -> Point:
    """Restore a batch with whole batches through the networks."""
    pipeline = load(prior)
    preset = find_preset("default").with_options(steps=steps)
    faces = smooth_faces(count, pipeline.resolution // 8)
    memory = PeakMemory(pipeline.prior.device)

    def work() -> None:
        generators = [torch.Generator().manual_seed(number) for number in range(count)]
        pipeline.restore(faces, generators, 1, preset, count, whole_batches=True)

    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    timer.timeit(1)
    return size, min(timer.timeit(1).median for _ in range(2)), memory.megabytes() or 0.0


def folder_runs(sizes: Sequence[int], method: str) -> Iterator[Point]:
    """Restore folders of faces of 16×16 pixels by a cheap method, each in a new process."""
    with tempfile.TemporaryDirectory() as root:
        for size in sizes:
            folder = Path(root) / f"{size}"
            folder.mkdir()
            for number, face in enumerate(smooth_faces(size, 16)):
                to_pil(face).save(folder / f"{number:06d}.png")
            run = run_faceprior("restore", str(folder), "-o", f"{folder}-out", "--aligned", "--method", method)
            yield size, run.seconds, run.peak_mb


def fit(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Power p of the least relative error of fixed + factor · size^p, neither of them negative."""
    size, cost = np.asarray(sizes, float), np.asarray(costs, float)

    def error(power: float) -> float:
        columns = np.stack([np.ones_like(size), size**power], 1) / cost[:, None]
        found, *_ = np.linalg.lstsq(columns, np.ones_like(cost), rcond=None)
        if found[0] < 0:  # through the origin then
            found = np.array([0.0, columns[:, 1].sum() / (columns[:, 1] ** 2).sum()])
        return float(((columns @ found - 1) ** 2).sum()) if found[1] >= 0 else np.inf

    return float(min(np.arange(0.05, 3.005, 0.01), key=error))


if __name__ == "__main__":
    typer.run(main)
