"""The one reverse-diffusion loop, and what a restoration method is to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch

from faceprior.priors.adapter import Prior
from faceprior.sampling.noise import NoiseSource, noised
from faceprior.sampling.solvers import Denoised, Solver
from faceprior.sampling.steps import CLEAN, Step, noise_of_rise

OnStep = Callable[[Step, torch.Tensor, torch.Tensor], torch.Tensor]

Started = tuple[torch.Tensor, Any]
"""x_t for the first step, (B, 3, R, R), and a method's state."""

Stepped = tuple[torch.Tensor, torch.Tensor, Any]
"""x_{t_prev} and the estimate of the clean image that led there, (B, 3, R, R) each, and a method's state."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Sampler:
    """What a method makes its steps with.

    Attributes:
        prior: estimates the clean image and the noise.
        solver: the rule of one step.
        noise: one generator for each image.
        clip: clip x0 to [-1, 1] at every step, as face priors are trained to.
        whole_batches: networks see whole batches on a CPU too: faster, but the last bits depend on the batch.
    """

    prior: Prior
    solver: Solver
    noise: NoiseSource
    clip: bool = True
    whole_batches: bool = False

    def estimate(self, x_t: torch.Tensor, step: Step) -> Denoised:
        """Ask the prior about x_t, (B, 3, R, R). Under `torch.enable_grad` the estimates are functions of x_t."""
        t = torch.full((len(x_t),), step.t, device=x_t.device)
        estimate = self.apply(self.prior, x_t, t)
        x0, eps = estimate.x0, estimate.eps
        if self.clip:
            x0 = x0.clamp(-1, 1)
            if self.solver.eps_from_clipped:
                eps = (x_t - math.sqrt(step.alphas_cumprod) * x0) / math.sqrt(1 - step.alphas_cumprod)
        return Denoised(x_t, x0, eps, estimate.variance_range)

    def solve(self, denoised: Denoised, step: Step) -> torch.Tensor:
        """Return x_{t_prev}, (B, 3, R, R)."""
        return self.solver.step(denoised, step, self.noise)

    def apply(self, network: Callable[..., Result], *batches: torch.Tensor) -> Result:
        """Apply a network to batches, see `map_images`."""
        return map_images(network, *batches, whole=self.whole_batches)


class Initial(NamedTuple):
    """Clean faces to start from where they are known, such as those of the frame before.

    Attributes:
        faces: (B, 3, R, R) in [-1, 1].
        known: how far they are, 0 to 1, (B, 1, R, R) or (B, 1, 1, 1); elsewhere the method's own guess is the start.
    """

    faces: torch.Tensor
    known: torch.Tensor

    def over(self, guess: torch.Tensor) -> torch.Tensor:
        """Put these faces over a guess, (B, 3, R, R), as far as they are known."""
        return torch.lerp(guess, self.faces, self.known)


class Restoration:
    """A restoration method set to work on one batch; as it stands, the prior alone, with no measurement.

    It does not change while it samples. What changes from step to step, the method's state, is a value that `start`
    returns and every `step` gets and hands on; most methods have none.

    Attributes:
        differentiates: whether it takes gradients through the prior: a step then costs about three.
    """

    differentiates: ClassVar[bool] = False

    def start(self, step: Step, sampler: Sampler, initial: Initial | None = None) -> Started:
        """Return x_t for the first step, (B, 3, R, R), and the state; x_t is the result if there is no step at all.

        Raises:
            OptionError: initial faces are given to a method that cannot start from them.
        """
        z = sampler.noise.normal(3, sampler.prior.resolution, sampler.prior.resolution)
        return (z if initial is None else noised(initial.over(torch.zeros_like(z)), z, step.alphas_cumprod)), None

    def step(self, x_t: torch.Tensor, state: Any, step: Step, sampler: Sampler) -> Stepped:
        """Return x_{t_prev}, the estimate of the clean image that led there, and the state."""
        denoised = sampler.estimate(x_t, step)
        return sampler.solve(denoised, step), denoised.x0, state


@torch.no_grad()
def sample(
    restoration: Restoration,
    steps: Sequence[Step],
    sampler: Sampler,
    *,
    initial: Initial | None = None,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """Run reverse diffusion from the first step to the clean image.

    Args:
        restoration: the method, begun on a batch of B measurements.
        steps: noisiest first (`spaced_steps`), with rising ones in between where a method travels in time
            (`time_travel`); none at all returns the start.
        sampler: prior, solver and noise.
        initial: clean faces to start from; None leaves the start to the method.
        on_step: called with (step, x_{t_prev}, corrected x0) after every step that asked the prior; returns the
            x_{t_prev} to go on with.

    Returns:
        (B, 3, R, R), float32.

    Raises:
        OptionError: initial faces are given to a method that cannot start from them.
    """
    x, state = restoration.start(steps[0] if steps else CLEAN, sampler, initial)
    for step in steps:
        if step.rises:
            signal, spread = noise_of_rise(step)
            x = signal * x + spread * sampler.noise.normal(*x.shape[1:])
            continue
        x, x0, state = restoration.step(x, state, step, sampler)
        if on_step is not None:
            x = on_step(step, x, x0)
    return x


def map_images(function: Callable[..., Result], *batches: torch.Tensor, whole: bool = False) -> Result:
    """Apply a network to a batch: at once on an accelerator, one image at a time on a CPU.

    On a CPU the kernels that are chosen, and so the last bits of a result, depend on the batch size; an image on
    its own always gets the same ones (`whole` gives that up). `function` returns a tensor or a named tuple
    of tensors and None.
    """
    if batches[0].device.type != "cpu" or len(batches[0]) == 1 or whole:
        return function(*batches)
    results = [function(*images) for images in zip(*(batch.split(1) for batch in batches), strict=True)]
    first = results[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(results)  # type: ignore[arg-type, return-value]
    fields = zip(*results, strict=True)
    return type(first)(*(None if field[0] is None else torch.cat(field) for field in fields))
