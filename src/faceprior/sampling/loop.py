"""The one reverse-diffusion loop. A restoration method hooks into it; none has a loop of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ClassVar, NamedTuple, TypeVar

import torch

from faceprior.priors.adapter import Prior
from faceprior.sampling.noise import NoiseSource
from faceprior.sampling.solvers import Solver
from faceprior.sampling.steps import CLEAN, Step, noise_of_rise


class Denoised(NamedTuple):
    """What a method corrects at a step; all tensors (B, 3, R, R).

    Attributes:
        x_t: the noisy image.
        x0: estimate of the clean image, clipped to [-1, 1].
        eps: estimate of the noise.
        variance_range: see `faceprior.priors.Estimate`; may be None.

    For a method that differentiates, x0 and eps are functions of x_t in torch's graph.
    """

    x_t: torch.Tensor
    x0: torch.Tensor
    eps: torch.Tensor
    variance_range: torch.Tensor | None

    def detach(self) -> Denoised:
        """Return the values alone, without a graph."""
        variance_range = None if self.variance_range is None else self.variance_range.detach()
        return Denoised(self.x_t.detach(), self.x0.detach(), self.eps.detach(), variance_range)


class Restoration:
    """A restoration method at work on one batch: as it stands, the prior alone, left to itself.

    Attributes:
        differentiates: whether `correct` takes gradients of x0 with respect to x_t; the loop then keeps the graph
            of the prior's estimate until `correct` has returned.
    """

    differentiates: ClassVar[bool] = False

    def start(self, step: Step, noise: NoiseSource) -> torch.Tensor:
        """Return x_t for the first step, (B, 3, R, R); the result, where there is no step at all."""
        raise NotImplementedError

    def start_from(self, images: torch.Tensor) -> None:
        """Start from these clean faces, (B, 3, R, R), instead of the method's own guess, if it has one."""

    def correct(self, denoised: Denoised, step: Step, noise: NoiseSource) -> Denoised:  # noqa: ARG002
        """Bend the prior's estimate towards the measurement."""
        return denoised

    def finish(self, x_prev: torch.Tensor, step: Step, noise: NoiseSource) -> torch.Tensor:  # noqa: ARG002
        """Look at the step's result, and change it if the method says so."""
        return x_prev


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
        steps: noisiest first (`spaced_steps`), with rising ones in between where a method travels in time
            (`time_travel`); none at all returns the start.
        noise: one generator for each image.
        clip: clip x0 to [-1, 1] at every step, as face priors are trained to.
        on_step: called with (step, x_{t_prev}, corrected x0) after every step that asked the prior; returns the
            x_{t_prev} to go on with.

    Returns:
        (B, 3, R, R), float32.
    """
    x = restoration.start(steps[0] if steps else CLEAN, noise)
    for step in steps:
        if step.rises:
            signal, spread = noise_of_rise(step)
            x = signal * x + spread * noise.normal(*x.shape[1:])
            continue
        with torch.set_grad_enabled(restoration.differentiates):
            if restoration.differentiates:
                x = x.detach().requires_grad_()
            denoised = restoration.correct(_estimate(prior, x, step, solver, clip=clip), step, noise)
        denoised = denoised.detach()  # frees the graph
        x = solver.step(denoised, step, noise)
        x = restoration.finish(x, step, noise)
        if on_step is not None:
            x = on_step(step, x, denoised.x0)
    return x


def _estimate(prior: Prior, x: torch.Tensor, step: Step, solver: Solver, *, clip: bool) -> Denoised:
    t = torch.full((len(x),), step.t, device=x.device)
    estimate = map_images(prior, x, t)
    x0, eps = estimate.x0, estimate.eps
    if clip:
        x0 = x0.clamp(-1, 1)
        if solver.eps_from_clipped:
            eps = (x - math.sqrt(step.alphas_cumprod) * x0) / math.sqrt(1 - step.alphas_cumprod)
    return Denoised(x, x0, eps, estimate.variance_range)


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
