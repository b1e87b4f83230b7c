"""What 256×256 priors cost: seconds and memory by faces at once, on random weights: python -m benchmarks.memory.

Whole batches go through the networks, as on a GPU. "work" is the memory in use at the peak beside the weights: on
CUDA as its allocator tells, on a CPU as the process grows. On a CPU seconds are a core's. All steps cost the same, so
few are made.
"""

from __future__ import annotations

import time
from itertools import product
from multiprocessing import get_context
from typing import Annotated

import torch
import typer
from benchmarks.common import load, machine, show, smooth_faces

from faceprior.benchmark.config import read_method, split_methods
from faceprior.benchmark.memory import PeakMemory

COLUMNS = ("prior", "method", "format", "at once", "s/face and step", "s/face, 20 steps", "weights MB", "work MB")


def main(
    priors: Annotated[
        str, typer.Option(help="As for benchmarks.speed, with commas.")
    ] = "random:ffhq,random:celebahq",
    methods: Annotated[str, typer.Option(help="As for faceprior benchmark.")] = "paper-ddim",
    batches: Annotated[str, typer.Option(help="Faces at once.")] = "1,2,4",
    dtypes: str = "auto",
    device: str = "auto",
    steps: Annotated[int, typer.Option(help="That are made.")] = 2,
) -> None:
    """Measure each case in a process of its own."""
    print(machine())
    cases = product(priors.split(","), split_methods(methods), dtypes.split(","), map(int, batches.split(",")))
    with get_context("spawn").Pool(1, maxtasksperchild=1) as processes:
        show("×8", COLUMNS, [processes.apply(measure, (*case, device, steps)) for case in cases])


def measure(prior: str, method: str, dtype: str, batch: int, device: str, steps: int) -> tuple[object, ...]:
    """Measure one case; returns what `COLUMNS` names."""
    pipeline = load(prior, device, dtype)
    preset = read_method(method)[1].with_options(steps=steps)
    faces = smooth_faces(batch, pipeline.resolution // 8)

    generators = [torch.Generator().manual_seed(number) for number in range(batch)]
    own = pipeline.prior.device
    networks = [pipeline.prior.network, *([pipeline.crt.network] if pipeline.crt else [])]
    weights = sum(one.numel() * one.element_size() for network in networks for one in network.parameters()) / 1e6
    at_rest = PeakMemory(own).megabytes() or 0
    memory = PeakMemory(own)
    clock = time.process_time if own.type == "cpu" else time.perf_counter
    started = clock()
    pipeline.restore(faces, generators, 1, preset, batch, whole_batches=True)
    each = (clock() - started) / (batch * pipeline.evaluations(preset))
    work = (memory.megabytes() or 0) - at_rest
    number_format = str(pipeline.prior.dtype).removeprefix("torch.")
    costs = f"{each:.3g}", f"{20 * each:.3g}", f"{weights:.0f}", f"{work:.0f}"
    return prior, method, number_format, batch, *costs


if __name__ == "__main__":
    typer.run(main)
