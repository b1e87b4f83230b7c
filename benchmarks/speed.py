"""How fast restoring is, and how near to what the machine can do: python -m benchmarks.speed.

Each case is measured with torch.utils.benchmark, the networks' share with torch's profiler, their arithmetic with its
counter; the limit is a large matrix product or convolution in the same number format, whichever is faster.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import count
from typing import Annotated

import torch
import typer
from benchmarks.common import load, machine, show, smooth_faces
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from faceprior.benchmark.config import read_method, split_methods
from faceprior.benchmark.memory import PeakMemory
from faceprior.devices import is_out_of_memory
from faceprior.methods import Preset
from faceprior.pipeline import FacePriorPipeline

COLUMNS = ("case", "evaluations", "s/face", "±", "networks", "GFLOP/face", "GFLOP/s", "of the limit", "MB")


def main(
    prior: Annotated[str, typer.Option(help="As for restore; random:ffhq is the paper's network.")] = "",
    methods: Annotated[str, typer.Option(help="As for faceprior benchmark.")] = "default,fast",
    batches: Annotated[
        str, typer.Option(help="Faces restored together; auto: 1, 2, 4, … while they fit the GPU's memory.")
    ] = "1,8",
    dtypes: str = "auto",
    device: str = "auto",
    scale: float = 8.0,
    seconds: Annotated[float, typer.Option(help="Least time that a case is measured for.")] = 5.0,
    profile: Annotated[int, typer.Option(help="Also show so many of the longest operations of each case.")] = 0,
) -> None:
    """Measure seconds a face, the networks' share, and how near they are to the machine's limit."""
    print(machine())
    rows = []
    for dtype in dtypes.split(","):
        pipeline = load(prior, device, dtype)
        limit = max(limits(pipeline, seconds / 5))
        for entry in split_methods(methods):
            label, preset = read_method(entry)
            for batch in sizes(batches, pipeline.prior.device):
                try:
                    own = list(measure(pipeline, preset, batch, scale, seconds, limit, profile))
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    print(f"{label}: {batch} faces at once do not fit into the memory of {pipeline.prior.device}")
                    break
                rows.append((f"{label}, {str(pipeline.prior.network.dtype)[6:]}, batch {batch}", *own))
    show(f"{prior or 'embedded prior'}, ×{scale:g}; limit {limit / 1e9:.0f} GFLOP/s", COLUMNS, rows)


def sizes(batches: str, device: torch.device) -> Iterable[int]:
    """Batches to measure; a CPU has room for many, and computes one face after the other."""
    if batches != "auto":
        return map(int, batches.split(","))
    return [1] if device.type == "cpu" else (2**power for power in count())


def measure(
    pipeline: FacePriorPipeline, preset: Preset, batch: int, scale: float, seconds: float, limit: float, profile: int
) -> Iterator[str]:
    """Measure a case; yields what `COLUMNS` names."""
    faces = smooth_faces(batch, round(pipeline.resolution / scale))

    def restore(*, whole_batches: bool = False) -> None:
        generators = [torch.Generator().manual_seed(number) for number in range(batch)]
        pipeline.restore(faces, generators, 1, preset, batch, whole_batches=whole_batches)

    restore()
    memory = PeakMemory(pipeline.prior.device)
    timed = Timer("restore()", globals={"restore": restore}, num_threads=torch.get_num_threads())
    found = timed.blocked_autorange(min_run_time=seconds)
    on_this_thread = partial(restore, whole_batches=True)  # where operations can be counted
    flops, share = arithmetic(on_this_thread) / batch, networks_share(pipeline, on_this_thread, profile)
    each = found.median / batch
    yield str(pipeline.evaluations(preset))
    yield f"{each:.3g}"
    yield f"{found.iqr / batch:.1g}"
    yield f"{share:.0%}"
    yield f"{flops / 1e9:.3g}"
    yield f"{flops / each / 1e9:.3g}"
    yield f"{flops / each / limit:.0%}"
    yield f"{memory.megabytes() or 0:.0f}"


def arithmetic(work: object) -> float:
    """Count floating point operations, a multiply–add as two: products, convolutions and attention."""
    # the counter knows attention as two matrix products, not every fused kernel of it
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        work()  # type: ignore[operator]
    return counter.get_total_flops()


def networks_share(pipeline: FacePriorPipeline, work: object, operations: int) -> float:
    """Share of the time inside the networks, by torch's profiler; prints its longest operations if asked to."""
    handles = []
    for network in (pipeline.prior.network, *([pipeline.crt.network] if pipeline.crt else [])):
        spans: list[torch.profiler.record_function] = []

        def begin(*_: object, spans: list[torch.profiler.record_function] = spans) -> None:
            spans.append(torch.profiler.record_function("network").__enter__())

        def end(*_: object, spans: list[torch.profiler.record_function] = spans) -> None:
            spans.pop().__exit__(None, None, None)

        handles += [network.register_forward_pre_hook(begin), network.register_forward_hook(end)]
    try:
        with torch.profiler.profile() as found, torch.profiler.record_function("all"):
            work()  # type: ignore[operator]
    finally:
        for handle in handles:
            handle.remove()
    averages = found.key_averages()
    spent = {event.key: event.cpu_time_total for event in averages if event.key in ("network", "all")}
    if operations:
        print(averages.table(sort_by="self_cpu_time_total", row_limit=operations))
    return spent.get("network", 0.0) / spent["all"]


def limits(pipeline: FacePriorPipeline, seconds: float) -> Iterator[float]:
    """Floating point operations a second of a large matrix product, and of a large convolution."""
    where = {"device": pipeline.prior.device, "dtype": pipeline.prior.network.dtype}
    side, channels, pixels = (8192, 1024, 128) if pipeline.prior.device.type != "cpu" else (1536, 512, 64)
    matrix, image = torch.randn(side, side, **where), torch.randn(1, channels, pixels, pixels, **where)
    kernels = torch.randn(channels, channels, 3, 3, **where)
    tasks = (
        ("a @ a", {"a": matrix}, 2 * side**3),
        ("torch.conv2d(a, b, padding=1)", {"torch": torch, "a": image, "b": kernels}, 18 * channels**2 * pixels**2),
    )
    for statement, names, flops in tasks:
        timer = Timer(statement, globals=names, num_threads=torch.get_num_threads())
        yield flops / min(timer.blocked_autorange(min_run_time=seconds).times)


if __name__ == "__main__":
    typer.run(main)
