"""What a method says of itself: name, paper, options, and how it is set to work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from faceprior.corrector import Corrector
from faceprior.errors import OptionError
from faceprior.priors.adapter import Prior
from faceprior.priors.noise_schedule import NoiseSchedule
from faceprior.sampling import Restoration, Solver, Step, make_solver, spaced_steps
from faceprior.sampling.solvers import SolverName


@dataclass(frozen=True)
class SamplingOptions:
    """How the reverse diffusion runs, whatever the method.

    Attributes:
        solver: "ddim", "ddpm" (ancestral), or one of the second order, "dpmpp-2m" and "unipc".
        steps: number of noise levels, 1 to (start − end) · T; a method that does not travel in time evaluates
            the prior once at each.
        start: noise level at which the sampler starts, as a fraction of T, above 0 and at most 1. 1 is pure
            noise; below it the noised bicubic face is the start.
        end: noise level of the last step, from which the sampler goes straight to the clean image, as a fraction
            of T, at least 0 and below start. The higher, the smoother; 0 is ADM's.
        eta: η of DDIM, share of ancestral noise, 0 to 1.
        shift: share of t by which the prior is told a lower level than the image has, in every step but the last,
            at least 0 and below 1. A network's estimates are too smooth, all the more of a face that is smooth
            already; told less, it leaves more (time-shifted sampling, Li et al., ICLR 2024, arXiv 2305.15583).
    """

    solver: SolverName = "ddim"
    steps: int = 20
    start: float = 1.0
    end: float = 0.0
    eta: float = 0.0
    shift: float = 0.0


@dataclass(frozen=True)
class NoOptions:
    """Of a method that has none of its own."""


def evenly_spaced(schedule: NoiseSchedule, sampling: SamplingOptions, options: Any) -> list[Step]:  # noqa: ARG001
    """Return the steps of most methods (`faceprior.sampling.spaced_steps`)."""
    return spaced_steps(schedule, sampling.steps, sampling.start, sampling.end, sampling.shift)


@dataclass(frozen=True)
class Method:
    """A restoration method.

    Attributes:
        name: what it is called on the command line and in metadata.
        summary: what it does, in one line.
        reference: its paper: authors, venue, arXiv number.
        restoration: sets it to work on a batch: called with (faces, prior, options), and with the corrector as the
            fourth if `uses_corrector`; faces are (3, n, n) in [-1, 1], of any sides n.
        options: its options with their default values, an instance of a frozen dataclass; a name that
            `SamplingOptions` has too stands for the method's own.
        sampling: default solver, steps, start, end and η; None for a method that uses no prior.
        plan: the sampler's steps for (schedule, sampling, options).
        solvers: solvers that it works with.
        uses_corrector: whether it works with a condition corrector (CRT).
        blind: whether it takes a face at its own resolution, whatever was done to it, where no scale is set; the
            others are given it reduced to what it seems to know.
    """

    name: str
    summary: str
    reference: str
    restoration: Callable[..., Restoration]
    options: Any = NoOptions()
    sampling: SamplingOptions | None = SamplingOptions()
    plan: Callable[[NoiseSchedule, SamplingOptions, Any], list[Step]] = evenly_spaced
    solvers: tuple[SolverName, ...] = ("ddim", "ddpm")
    uses_corrector: bool = False
    blind: bool = False

    @property
    def uses_prior(self) -> bool:
        """Whether it evaluates the prior at all."""
        return self.sampling is not None

    @property
    def differentiates(self) -> bool:
        """Whether it takes gradients through the prior: a step then costs about three, and more memory."""
        return bool(getattr(self.restoration, "differentiates", False))

    @property
    def default_evaluations(self) -> int:
        """How often its defaults ask a prior of 1000 noise levels."""
        return sum(not step.rises for step in self.steps(NoiseSchedule.linear(), self.sampling, self.options))

    def steps(self, schedule: NoiseSchedule, sampling: SamplingOptions | None, options: Any) -> list[Step]:
        """Return the sampler's steps; none for a method without a prior.

        Raises:
            OptionError: steps, start, end or shift is out of its range.
        """
        return [] if sampling is None else self.plan(schedule, sampling, options)

    def solver(self, sampling: SamplingOptions | None) -> Solver:
        """Return a new solver, for one run on one batch.

        Raises:
            OptionError: it is unknown, eta does not suit it, or the method does not work with it.
        """
        chosen = sampling or SamplingOptions()
        solver = make_solver(chosen.solver, chosen.eta)
        if chosen.solver not in self.solvers:
            raise OptionError(f"solver is {chosen.solver}; {self.name} works with {' or '.join(self.solvers)} only")
        return solver

    def begin(
        self, low_resolution: Sequence[torch.Tensor], prior: Prior, options: Any, corrector: Corrector | None = None
    ) -> Restoration:
        """Set the method to work on a batch; raises OptionError if its options do not fit the prior."""
        if self.uses_corrector:
            return self.restoration(low_resolution, prior, options, corrector)
        return self.restoration(low_resolution, prior, options)
