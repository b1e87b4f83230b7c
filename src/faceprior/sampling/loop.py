"""The one reverse-diffusion loop, and what a restoration method is to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch

from faceprior.cores import in_turn
from faceprior.priors.adapter import Prior
from faceprior.sampling.noise import NoiseSource, noised
from faceprior.sampling.solvers import Denoised, Solver
from faceprior.sampling.steps import CLEAN, Step, noise_of_rise

OnStep = Callable[[Step, torch.Tensor, torch.Tensor], torch.Tensor]

Started = tuple[torch.Tensor, Any]
"""x_t for the first step, (B, 3, R, R), and a method's state."""

Stepped = tuple[torch.Tensor, torch.Tensor, Any]
"""x_{t_prev} and the estimate of the clean image that led there, (B, 3, R, R) each, and a method's state."""


@dataclass(frozen=True)
class Sampler:
    """What a method makes its steps with.

    Attributes:
        prior: estimates the clean image and the noise.
        solver: the rule of one step.
        noise: one generator for each image.
        clip: clip x0 to [-1, 1] at every step, as face priors are trained to.
    """

    prior: Prior
    solver: Solver
    noise: NoiseSource
    clip: bool = True

    def estimate(self, x_t: torch.Tensor, step: Step) -> Denoised:
        """Ask the prior about x_t, (B, 3, R, R). Under `torch.enable_grad` the estimates are functions of x_t."""
        t = torch.full((len(x_t),), step.told, device=x_t.device)
        estimate = self.prior(x_t, t)
        x0, eps = estimate.x0, estimate.eps
        if self.clip:
            x0 = x0.clamp(-1, 1)
            if self.solver.eps_from_clipped:
                eps = (x_t - math.sqrt(step.alphas_cumprod) * x0) / math.sqrt(1 - step.alphas_cumprod)
        return Denoised(x_t, x0, eps, estimate.variance_range)

    def solve(self, denoised: Denoised, step: Step) -> torch.Tensor:
        """Return x_{t_prev}, (B, 3, R, R)."""
        return self.solver.step(denoised, step, self.noise)


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

    def finish(self, samples: torch.Tensor, state: Any) -> torch.Tensor:  # noqa: ARG002
        """Make the results of what was sampled, (B, 3, R, R) both: what is done to one, but not to a mean."""
        return samples


class Sampled(NamedTuple):
    """What a sampler made of its images, (N, 3, R, R) each, float32.

    Attributes:
        samples: where the last step led.
        results: the same, finished by their method.
    """

    samples: torch.Tensor
    results: torch.Tensor


class Batch(NamedTuple):
    """Images that are computed together.

    Attributes:
        restoration: the method, begun on their measurements.
        sampler: prior, noise, and a solver of their own.
        initial: clean faces to start from; None leaves the start to the method.
    """

    restoration: Restoration
    sampler: Sampler
    initial: Initial | None = None


def sample(
    restoration: Restoration,
    steps: Sequence[Step],
    sampler: Sampler,
    *,
    initial: Initial | None = None,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """Sample one batch, on the caller's thread, and return its results; see `sample_batches`."""
    return sample_batches([Batch(restoration, sampler, initial)], steps, on_step=on_step).results


@torch.no_grad()
def sample_batches(
    batches: Sequence[Batch],
    steps: Sequence[Step],
    *,
    on_step: OnStep | None = None,
    each: Callable[..., list[Any]] = in_turn,
) -> Sampled:
    """Run reverse diffusion from the first step to the clean images.

    Args:
        batches: what is sampled; none depends on another.
        steps: noisiest first (`spaced_steps`), with rising ones in between where a method travels in time
            (`time_travel`); none at all returns the start.
        on_step: called with (step, x_{t_prev}, corrected x0) of all images after every step that asked the prior;
            returns the x_{t_prev} to go on with.
        each: `in_turn` or `on_cores`: how a step of all batches is made.

    Raises:
        OptionError: initial faces are given to a method that cannot start from them.
    """
    first = steps[0] if steps else CLEAN
    started = each(lambda own: own.restoration.start(first, own.sampler, own.initial), batches)
    images, states = [x for x, _ in started], [state for _, state in started]
    for step in steps:
        if step.rises:
            signal, spread = noise_of_rise(step)
            draws = [own.sampler.noise.normal(*x.shape[1:]) for own, x in zip(batches, images, strict=True)]
            images = [signal * x + spread * z for x, z in zip(images, draws, strict=True)]
            continue
        stepped = each(partial(_step, step), batches, images, states)
        images, estimates, states = map(list, zip(*stepped, strict=True))
        if on_step is not None:
            sizes = [len(x) for x in images]
            images = list(on_step(step, torch.cat(images), torch.cat(estimates)).split(sizes))
    results = each(lambda own, x, state: own.restoration.finish(x, state), batches, images, states)
    return Sampled(torch.cat(images), torch.cat(results))


def _step(step: Step, batch: Batch, x_t: torch.Tensor, state: Any) -> Stepped:
    return batch.restoration.step(x_t, state, step, batch.sampler)
