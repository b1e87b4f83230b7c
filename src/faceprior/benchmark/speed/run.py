"""Running `faceprior benchmark speed`, and what it writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import faceprior
from faceprior.benchmark.speed.config import Case, SpeedConfig, Subject
from faceprior.benchmark.speed.machine import Machine, this_machine
from faceprior.benchmark.speed.measure import Speed, make_work, measure
from faceprior.benchmark.speed.profiler import Operation, profile
from faceprior.benchmark.speed.rivals import RIVAL_METHODS, Duel, compare
from faceprior.benchmark.speed.start_up import TASKS, StartUp, measure_start_up
from faceprior.benchmark.speed.subjects import load_subject
from faceprior.errors import OutputError
from faceprior.evaluation.metrics import EXACT, psnr
from faceprior.pipeline.face_prior import FacePriorPipeline

_KEPT_OPERATIONS = 12  # of a profile, in the file


@dataclass(frozen=True)
class Networks:
    """What was measured.

    Attributes:
        prior: name on its card.
        corrector: name on its card; "" without one.
        resolution: side of a face in pixels.
        parameters: of each network.
        device: "cpu", "cuda" or "mps".
        dtype: number format that the networks compute in.
    """

    prior: str
    corrector: str
    resolution: int
    parameters: dict[str, int]
    device: str
    dtype: str


@dataclass(frozen=True)
class CaseResult:
    """A case and its figures.

    Attributes:
        networks: what was measured.
        method: label of the method.
        options: all its options.
        batch_size: faces that are restored together.
        speed: the figures.
        float32_db: PSNR in dB of the restored faces against those in float32, the mean; None where float32 was not
            measured before on the same device, or is itself what was measured.
        operations: where the time goes, if that was asked for.
    """

    networks: Networks
    method: str
    options: dict[str, Any]
    batch_size: int
    speed: Speed
    float32_db: float | None
    operations: list[Operation]


@dataclass(frozen=True)
class DuelResult:
    """A comparison with another package.

    Attributes:
        networks: that both used.
        batch_size: faces at once.
        duel: the figures.
    """

    networks: Networks
    batch_size: int
    duel: Duel


@dataclass(frozen=True)
class SpeedReport:
    """All that was measured.

    Attributes:
        machine: at the start.
        cases: in the order of the grids.
        duels: with another package.
        start_up: cold starts.
    """

    machine: Machine
    cases: list[CaseResult]
    duels: list[DuelResult]
    start_up: list[StartUp]

    def write(self, path: Path, config: SpeedConfig, command: str) -> None:
        """Write everything as JSON; raises OutputError if it cannot be."""
        values = {"faceprior": faceprior.__version__, "command": command, "config": asdict(config), **asdict(self)}
        for case in values["cases"]:
            case["operations"] = case["operations"][:_KEPT_OPERATIONS]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another --output") from error


def count_runs(config: SpeedConfig) -> int:
    """How often `run_speed` calls `on_run`."""
    runs = config.runs + 1
    total = TASKS * runs if config.start_up else 0
    for grid in config.chosen_grids():
        cases = list(grid.cases())
        total += len(cases) * runs
        if config.against:
            total += len(dict.fromkeys((case.subject, case.batch_size) for case in cases)) * len(RIVAL_METHODS) * runs
    return total


def run_speed(config: SpeedConfig, on_run: Callable[[str], object] = lambda _what: None) -> SpeedReport:
    """Measure everything.

    Args:
        config: what to measure.
        on_run: called after each run with what was measured.

    Raises:
        OptionError: a method does not fit a prior.
        WeightsError: weights cannot be loaded.
        DeviceError: there is no such device, or a batch does not fit into its memory.
        FacePriorError: the other package is not installed.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    machine, cases, duels = this_machine(), list[CaseResult](), list[DuelResult]()
    start_up = measure_start_up(config.runs, lambda: on_run("start-up")) if config.start_up else []
    for grid in config.chosen_grids():
        own, exact = list(grid.cases()), dict[tuple[Any, ...], torch.Tensor]()
        for subject, pipeline in _subjects(own):
            chosen = [case for case in own if case.subject == subject]
            for case in chosen:
                cases.append(_measure(pipeline, case, config, exact, on_run))
            if config.against:
                duels += _compare(pipeline, chosen, config, on_run)
    if config.profile:  # after everything else: the profiler keeps memory
        cases = list(_profile(config, cases))
    return SpeedReport(machine, cases, duels, start_up)


def _subjects(cases: list[Case]) -> Iterator[tuple[Subject, FacePriorPipeline]]:
    for subject in dict.fromkeys(case.subject for case in cases):
        yield subject, load_subject(subject.prior, subject.corrector, subject.device, subject.dtype)


def _measure(
    pipeline: FacePriorPipeline,
    case: Case,
    config: SpeedConfig,
    exact: dict[tuple[Any, ...], torch.Tensor],
    on_run: Callable[[str], object],
) -> CaseResult:
    """Measure a case; `exact` remembers what float32 restored."""
    what = f"{pipeline.prior.card.name} {case.method} {case.batch_size}"
    speed, images = measure(
        pipeline,
        case.preset,
        case.batch_size,
        runs=config.runs,
        scale=config.scale,
        whole=config.whole_batches,
        on_run=lambda: on_run(what),
    )
    networks = describe(pipeline)
    key = (case.subject.prior, case.subject.corrector, networks.device, case.preset, case.batch_size)
    in_float32 = networks.dtype == "float32"
    if in_float32:
        exact[key] = images
    agreement = None if in_float32 or key not in exact else float(psnr(images, exact[key]).clamp(max=EXACT).mean())
    options = case.preset.as_dict()
    return CaseResult(networks, case.method, options, case.batch_size, speed, agreement, operations=[])


def _profile(config: SpeedConfig, results: list[CaseResult]) -> Iterator[CaseResult]:
    """Add its operations to each result, in the order in which `run_speed` measured them."""
    remaining = iter(results)
    for grid in config.chosen_grids():
        own = list(grid.cases())
        for subject, pipeline in _subjects(own):
            for case in (case for case in own if case.subject == subject):
                work = make_work(pipeline, case.preset, case.batch_size, config.scale, whole=config.whole_batches)
                yield replace(next(remaining), operations=profile(work, pipeline.prior.device))


def _compare(
    pipeline: FacePriorPipeline, cases: list[Case], config: SpeedConfig, on_run: Callable[[str], object]
) -> Iterator[DuelResult]:
    for batch_size in dict.fromkeys(case.batch_size for case in cases):
        found = compare(
            pipeline, batch_size, config.rival_steps, config.scale, config.runs, lambda: on_run(config.against)
        )
        for duel in found:
            yield DuelResult(describe(pipeline.without_corrector()), batch_size, duel)


def describe(pipeline: FacePriorPipeline) -> Networks:
    """Describe the networks of a pipeline."""
    networks = {"prior": pipeline.unet, "corrector": pipeline.corrector}
    return Networks(
        prior=pipeline.prior.card.name,
        corrector=pipeline.corrector_card.name if pipeline.corrector_card else "",
        resolution=pipeline.resolution,
        parameters={
            name: sum(parameter.numel() for parameter in network.parameters())
            for name, network in networks.items()
            if network is not None
        },
        device=pipeline.prior.device.type,
        dtype=str(next(pipeline.unet.parameters()).dtype).removeprefix("torch."),
    )
