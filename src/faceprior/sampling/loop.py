"""The one reverse-diffusion loop. A restoration method hooks into it; none has a loop of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, Protocol, TypeVar

import torch

from faceprior.priors.adapter import Prior
from faceprior.sampling.noise import NoiseSource
from faceprior.sampling.solvers import Solver
from faceprior.sampling.steps import Step


class Denoised(NamedTuple):
    """What a method corrects at a step; all tensors (B, 3, R, R).

    Attributes:
        x_t: the noisy image.
        x0: estimate of the clean image, clipped to [-1, 1].
        eps: estimate of the noise.
        variance_range: see `faceprior.priors.Estimate`; may be None.
    """

    x_t: torch.Tensor
    x0: torch.Tensor
    eps: torch.Tensor
    variance_range: torch.Tensor | None


class Restoration(Protocol):
    """A restoration method at work on one batch."""

    def start(self, step: Step, noise: NoiseSource) -> torch.Tensor:
        """Return x_t for the first step, (B, 3, R, R)."""

    def correct(self, denoised: Denoised, step: Step, noise: NoiseSource) -> Denoised:
        """Bend the prior's estimate towards the measurement."""

    def finish(self, x_prev: torch.Tensor, step: Step, noise: NoiseSource) -> torch.Tensor:
        """Look at the step's result, and change it if the method says so."""


OnStep = Callable[[Step, torch.Tensor, torch.Tensor], torch.Tensor]

Result = TypeVar("Result")

_whole_batches: ContextVar[bool] = ContextVar("whole_batches", default=False)


@torch.no_grad()
def sample(
    prior: Prior,
    restoration: Restoration,
    solver: Solver,
    steps: Sequence[Step],
    noise: NoiseSource,
    *,
    clip: bool = True,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """Run reverse diffusion from the first step to the clean image.

    Args:
        prior: estimates the clean image and the noise.
        restoration: the method, begun on a batch of B measurements.
        solver: the rule of one step.
        steps: noisiest first (`spaced_steps`).
        noise: one generator for each image.
        clip: clip x0 to [-1, 1] at every step, as face priors are trained to.
        on_step: called with (step, x_{t_prev}, corrected x0); returns the x_{t_prev} to go on with.

    Returns:
        (B, 3, R, R), float32.
    """
    x = restoration.start(steps[0], noise)
    for step in steps:
        t = torch.full((len(x),), step.t, device=x.device)
        estimate = map_images(prior, x, t)
        x0, eps = estimate.x0, estimate.eps
        if clip:
            x0 = x0.clamp(-1, 1)
            if solver.eps_from_clipped:
                eps = (x - math.sqrt(step.alphas_cumprod) * x0) / math.sqrt(1 - step.alphas_cumprod)
        denoised = restoration.correct(Denoised(x, x0, eps, estimate.variance_range), step, noise)
        x = solver.step(denoised, step, noise)
        x = restoration.finish(x, step, noise)
        if on_step is not None:
            x = on_step(step, x, denoised.x0)
    return x


@contextmanager
def whole_batches() -> Iterator[None]:
    """Within it networks see whole batches on a CPU too: faster, but the last bits depend on the batch.

    For measuring many faces, where means are wanted; a result that someone keeps is made without.
    """
    token = _whole_batches.set(True)
    try:
        yield
    finally:
        _whole_batches.reset(token)


def map_images(function: Callable[..., Result], *batches: torch.Tensor) -> Result:
    """Apply a network to a batch: at once on an accelerator, one image at a time on a CPU.

    On a CPU the kernels that are chosen, and so the last bits of a result, depend on the batch size; an image on
    its own always gets the same ones (`whole_batches` gives that up). `function` returns a tensor or a named tuple
    of tensors and None.
    """
    if batches[0].device.type != "cpu" or len(batches[0]) == 1 or _whole_batches.get():
        return function(*batches)
    results = [function(*images) for images in zip(*(batch.split(1) for batch in batches), strict=True)]
    first = results[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(results)  # type: ignore[arg-type, return-value]
    fields = zip(*results, strict=True)
    return type(first)(*(None if field[0] is None else torch.cat(field) for field in fields))
