"""How fast one case is, and where its time goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from faceprior.benchmark.memory import PeakMemory
from faceprior.benchmark.speed.ceiling import Ceiling, count_flops, measure_ceiling
from faceprior.benchmark.speed.clock import Spread, clock_of, time_inside
from faceprior.errors import DeviceError
from faceprior.images import resize
from faceprior.methods import Preset, find_method
from faceprior.pipeline.face_prior import FacePriorPipeline


@dataclass(frozen=True)
class Run:
    """One measurement of a case.

    Attributes:
        seconds: of the whole batch.
        cpu_seconds: processor time of this process meanwhile, all threads together.
        network_seconds: inside each network.
        images: that each network was given, one for each call that a face takes part in.
        ceiling: measured right after.
    """

    seconds: float
    cpu_seconds: float
    network_seconds: dict[str, float]
    images: dict[str, int]
    ceiling: Ceiling

    @property
    def share_outside(self) -> float:
        """Share of the time that was not spent inside the networks, 0 to 1."""
        return min(1.0, max(0.0, 1 - sum(self.network_seconds.values()) / self.seconds))


@dataclass(frozen=True)
class Speed:
    """How fast a case is; times are of one face, whatever the batch.

    Attributes:
        evaluations: how often a face asks the prior.
        seconds: of a face.
        step_seconds: of a face, for each evaluation of the prior.
        cpu_seconds: processor time of a face, all threads together.
        faces_per_second: the median's.
        share_outside: share of the time outside the networks, 0 to 1.
        share_of: share of the time inside each network, 0 to 1; the medians.
        flops: floating point operations of the networks for a face, a multiply–add as two.
        flops_of: the same for each network.
        flops_per_second: of the networks, over the whole time.
        ceiling_flops: a large matrix product's or convolution's in the same number format and run.
        ceiling_bytes: bytes a second of a large copy.
        ceiling_fraction: flops_per_second over ceiling_flops, run by run.
        peak_memory_mb: see `PeakMemory`.
    """

    evaluations: int
    seconds: Spread
    step_seconds: Spread
    cpu_seconds: Spread
    faces_per_second: float
    share_outside: Spread
    share_of: dict[str, float]
    flops: int
    flops_of: dict[str, int]
    flops_per_second: Spread
    ceiling_flops: Spread
    ceiling_bytes: Spread
    ceiling_fraction: Spread
    peak_memory_mb: float | None


def measure(
    pipeline: FacePriorPipeline,
    preset: Preset,
    batch_size: int,
    *,
    runs: int = 5,
    scale: float = 8.0,
    whole: bool = False,
    on_run: Callable[[], object] = lambda: None,
) -> tuple[Speed, torch.Tensor]:
    """Restore a batch of faces several times.

    Args:
        pipeline: on its device and in its number format.
        preset: method and options.
        batch_size: faces that are restored together.
        runs: that count; one more comes before them.
        scale: R/n of the inputs.
        whole: let the networks see whole batches on a CPU too.
        on_run: called after each run, the first included.

    Returns:
        The figures, and the restored faces, (B, 3, R, R) in [-1, 1].

    Raises:
        OptionError: the preset does not fit the prior.
        DeviceError: the batch does not fit into the device's memory.
    """
    pipeline.check(preset)
    work = make_work(pipeline, preset, batch_size, scale, whole=whole)
    memory = PeakMemory(pipeline.prior.device)
    try:
        images = work()  # allocates memory, chooses kernels
        on_run()
        measured = []
        for _ in range(runs):
            measured.append(_run(pipeline, work))
            on_run()
    except torch.cuda.OutOfMemoryError as error:
        raise DeviceError(
            f"{batch_size} faces at once do not fit into the memory of {pipeline.prior.device}; leave that batch out"
        ) from error
    method = find_method(preset.method)
    each = count_flops(pipeline.prior, pipeline.corrector, differentiates=method.differentiates)
    speed = summarise(measured, batch_size, pipeline.evaluations(preset), each, memory.megabytes())
    return speed, images.squeeze(1)


def make_work(
    pipeline: FacePriorPipeline, preset: Preset, batch_size: int, scale: float, *, whole: bool = False
) -> Callable[[], torch.Tensor]:
    """Return what restores a batch of smooth random faces, the same ones at every call."""
    side = round(pipeline.resolution / scale)
    coarse = torch.rand(batch_size, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    faces = list(resize(coarse, side).clamp(-1, 1))

    def work() -> torch.Tensor:
        generators = [torch.Generator().manual_seed(number) for number in range(batch_size)]
        return pipeline.restore(faces, generators, 1, preset, batch_size, whole_batches=whole)

    return work


def networks_of(pipeline: FacePriorPipeline) -> dict[str, nn.Module]:
    """Return the networks of a pipeline by name."""
    found = {"prior": pipeline.unet, "corrector": pipeline.corrector}
    return {name: network for name, network in found.items() if network is not None}


def _run(pipeline: FacePriorPipeline, work: Callable[[], object]) -> Run:
    device = pipeline.prior.device
    clock = clock_of(device)
    with time_inside(networks_of(pipeline), clock) as inside:
        cpu, start = time.process_time(), clock.mark()
        work()
        seconds = clock.seconds(start, clock.mark())
        cpu_seconds = time.process_time() - cpu
    dtype = next(pipeline.unet.parameters()).dtype
    return Run(seconds, cpu_seconds, inside.seconds(), inside.images, measure_ceiling(device, dtype, clock))


def summarise(
    runs: list[Run], batch_size: int, evaluations: int, flops_each: dict[str, int], peak_memory_mb: float | None
) -> Speed:
    """Summarise the runs of a case.

    Args:
        runs: at least one.
        batch_size: faces of each.
        evaluations: how often a face asks the prior; 0 for a method without.
        flops_each: of one call of each network for one face.
        peak_memory_mb: of all runs.
    """
    flops_of = {name: own * runs[0].images[name] // batch_size for name, own in flops_each.items()}
    flops = sum(flops_of.values())
    rates = [flops * batch_size / run.seconds for run in runs]
    seconds = Spread.of([run.seconds / batch_size for run in runs])
    return Speed(
        evaluations=evaluations,
        seconds=seconds,
        step_seconds=Spread.of([run.seconds / batch_size / max(1, evaluations) for run in runs]),
        cpu_seconds=Spread.of([run.cpu_seconds / batch_size for run in runs]),
        faces_per_second=1 / seconds.median,
        share_outside=Spread.of([run.share_outside for run in runs]),
        share_of={
            name: Spread.of([run.network_seconds[name] / run.seconds for run in runs]).median
            for name in runs[0].network_seconds
        },
        flops=flops,
        flops_of=flops_of,
        flops_per_second=Spread.of(rates),
        ceiling_flops=Spread.of([run.ceiling.flops for run in runs]),
        ceiling_bytes=Spread.of([run.ceiling.bytes for run in runs]),
        ceiling_fraction=Spread.of([rate / run.ceiling.flops for rate, run in zip(rates, runs, strict=True)]),
        peak_memory_mb=peak_memory_mb,
    )
