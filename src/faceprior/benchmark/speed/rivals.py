"""Another package's samplers on the same network, in turns with ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from faceprior.benchmark.speed.clock import Clock, Spread, clock_of, time_inside
from faceprior.benchmark.speed.deepinv_package import import_deepinv
from faceprior.benchmark.speed.measure import make_work, networks_of
from faceprior.errors import FacePriorError
from faceprior.images import resize
from faceprior.methods import find_preset
from faceprior.operators import bicubic_reduction
from faceprior.pipeline.face_prior import FacePriorPipeline
from faceprior.priors import Prior

RIVAL_METHODS = ("ddrm", "diffpir", "dps")
"""Methods that both have."""


@dataclass(frozen=True)
class Duel:
    """One method by both, in turns: ours, theirs, ours, theirs.

    Attributes:
        rival: package and version.
        method: of both.
        evaluations: of the prior by each.
        ours: seconds of a face.
        theirs: seconds of a face.
        ratio: theirs over ours, turn by turn.
        ours_outside: median share of our time outside the network.
        theirs_outside: median share of theirs.
    """

    rival: str
    method: str
    evaluations: int
    ours: Spread
    theirs: Spread
    ratio: Spread
    ours_outside: float
    theirs_outside: float


@dataclass(frozen=True)
class Turn:
    """One run.

    Attributes:
        seconds: of the whole batch.
        network_seconds: inside the prior's network.
        images: that it was given.
    """

    seconds: float
    network_seconds: float
    images: int


def compare(
    pipeline: FacePriorPipeline,
    batch_size: int,
    evaluations: int,
    scale: float,
    runs: int,
    on_run: Callable[[], object] = lambda: None,
) -> list[Duel]:
    """Run deepinv's samplers and ours on one network.

    Both get the same network, number format, reduction (with its singular value decomposition, which makes all that
    they do with it exact and cheap), batch and number of evaluations. Networks see whole batches, but for our DPS on
    a CPU, which keeps the graph of one face at a time.

    Args:
        pipeline: whose prior is used.
        batch_size: faces at once.
        evaluations: of the prior for each face.
        scale: R/n.
        runs: turns that count; one more comes before them.
        on_run: called after each turn of both.

    Raises:
        FacePriorError: deepinv is not installed, or cannot be imported.
    """
    deepinv = import_deepinv()
    pipeline = pipeline.without_corrector()
    samplers = _samplers(deepinv, pipeline.prior, evaluations)
    return [
        _duel(deepinv, pipeline, name, samplers[name], batch_size, evaluations, scale, runs, on_run)
        for name in RIVAL_METHODS
    ]


def _duel(
    deepinv: Any,
    pipeline: FacePriorPipeline,
    name: str,
    sampler: Any,
    batch_size: int,
    evaluations: int,
    scale: float,
    runs: int,
    on_run: Callable[[], object],
) -> Duel:
    preset = find_preset(name).with_options(steps=evaluations)
    physics = _reduction(deepinv, pipeline, batch_size, round(pipeline.resolution / scale))
    clock = clock_of(pipeline.prior.device)
    tasks: dict[str, Callable[[], object]] = {
        "ours": make_work(pipeline, preset, batch_size, scale, whole=True),
        "theirs": lambda: sampler(physics.measurement, physics),
    }
    turns: dict[str, list[Turn]] = {who: [] for who in tasks}
    for turn in range(runs + 1):
        for who, task in tasks.items():
            measured = take_turn(task, pipeline, clock)
            if turn:
                turns[who].append(measured)
        on_run()
    return settle(f"deepinv {deepinv.__version__}", name, turns["ours"], turns["theirs"], batch_size)


def take_turn(task: Callable[[], object], pipeline: FacePriorPipeline, clock: Clock) -> Turn:
    """Run a sampler once."""
    with time_inside({"prior": networks_of(pipeline)["prior"]}, clock) as inside:
        start = clock.mark()
        task()
        seconds = clock.seconds(start, clock.mark())
    return Turn(seconds, inside.seconds()["prior"], inside.images["prior"])


def settle(rival: str, method: str, ours: list[Turn], theirs: list[Turn], batch_size: int) -> Duel:
    """Compare turn by turn.

    Raises:
        FacePriorError: one of both asked the network more often than the other: no comparison.
    """
    if ours[0].images != theirs[0].images:
        raise FacePriorError(
            f"{method}: ours gave the network {ours[0].images} images and {rival} {theirs[0].images};"
            " this version counts its steps otherwise, and the times cannot be compared"
        )
    return Duel(
        rival=rival,
        method=method,
        evaluations=ours[0].images // batch_size,
        ours=Spread.of([turn.seconds / batch_size for turn in ours]),
        theirs=Spread.of([turn.seconds / batch_size for turn in theirs]),
        ratio=Spread.of([their.seconds / our.seconds for our, their in zip(ours, theirs, strict=True)]),
        ours_outside=median(1 - turn.network_seconds / turn.seconds for turn in ours),
        theirs_outside=median(1 - turn.network_seconds / turn.seconds for turn in theirs),
    )


def _samplers(deepinv: Any, prior: Prior, evaluations: int) -> Mapping[str, Any]:
    denoiser = _denoiser(deepinv, prior)
    sampling, device = deepinv.sampling, prior.device
    sigmas = ((1 - prior.schedule.alphas_cumprod) / prior.schedule.alphas_cumprod).sqrt()
    levels = sigmas[torch.linspace(len(sigmas) - 1, 0, evaluations).round().long()] / 2
    return {
        "ddrm": sampling.DDRM(denoiser, sigmas=levels.tolist()),
        "diffpir": sampling.DiffPIR(
            denoiser, deepinv.optim.data_fidelity.L2(), max_iter=evaluations, device=device.type
        ),
        # its last noise level is not evaluated
        "dps": sampling.DPS(denoiser, num_steps=evaluations + 1, device=device),
    }


def _denoiser(deepinv: Any, prior: Prior) -> Any:
    """Return the prior as deepinv wants it: ([0, 1] image with noise σ, σ) → [0, 1] image."""
    # σ of [-1, 1] images at each t
    sigmas = ((1 - prior.schedule.alphas_cumprod) / prior.schedule.alphas_cumprod).sqrt().float().to(prior.device)

    class PriorDenoiser(deepinv.models.Denoiser):  # type: ignore[misc]
        def forward(self, x: torch.Tensor, sigma: float | torch.Tensor, **_: Any) -> torch.Tensor:
            level = 2 * torch.as_tensor(sigma, device=x.device, dtype=torch.float32).flatten()[0]
            t = (sigmas - level).abs().argmin().expand(len(x))
            signal = prior.schedule.at(t).sqrt()
            return (prior((2 * x - 1) * signal, t).x0 + 1) / 2

    return PriorDenoiser(device=prior.device)


def _reduction(deepinv: Any, pipeline: FacePriorPipeline, batch_size: int, side: int) -> Any:
    """Return our bicubic reduction as deepinv's operator, with a measurement of random faces.

    A measurement is given in the coordinates of its singular vectors, padded with zeros to the image's size, as
    deepinv's DDRM takes it.
    """
    resolution, device = pipeline.resolution, pipeline.prior.device
    operator = bicubic_reduction(resolution, side)
    rows, columns = operator.row_basis.float().to(device), operator.column_basis.float().to(device)
    physics = deepinv.physics.DecomposablePhysics(
        V=lambda spectrum: rows @ spectrum @ columns.mT,
        V_adjoint=lambda image: rows.mT @ image @ columns,
        mask=operator.singular_values.float().to(device).expand(1, 3, -1, -1),
        img_size=(3, resolution, resolution),
        noise_model=deepinv.physics.GaussianNoise(0.01),
        device=device,
    )
    coarse = torch.rand(batch_size, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    physics.measurement = physics.A(resize(coarse, resolution).to(device))
    return physics
