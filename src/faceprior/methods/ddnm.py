"""DDNM and DDNM+, Denoising Diffusion Null-space Model (Wang et al., ICLR 2023, arXiv 2212.00490).

What the measurement says of an image replaces that part of the clean estimate; the rest, the null space of A, is the
prior's. With noise in the measurement (DDNM+) the replacement is partial, and allows for the noise it brings along.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from faceprior.errors import OptionError
from faceprior.methods.measured import Measured, check_not_negative, check_share, refreshed
from faceprior.methods.method import Method, SamplingOptions, evenly_spaced
from faceprior.priors.adapter import Prior
from faceprior.priors.noise_schedule import NoiseSchedule
from faceprior.sampling import Sampler, Step, Stepped, time_travel


@dataclass(frozen=True)
class DDNMOptions:
    """Options of DDNM and DDNM+.

    Attributes:
        eta: η; share of fresh noise in each step, 0 to 1: the noise of x_{t−1} is √(1 − η²) · eps + η · z.
        sigma_y: standard deviation of the noise in the face, on the scale of [0, 1] pixel values. At least 0; 0 is
            DDNM, above it is DDNM+.
        travel_length: l; steps of a stretch that time travel repeats, at least 1.
        travel_repeat: r; how often it is gone down, at least 1; 1 is no time travel.

    Raises:
        OptionError: a value is out of its range.
    """

    eta: float = 0.85
    sigma_y: float = 0.0
    travel_length: int = 1
    travel_repeat: int = 1

    def __post_init__(self) -> None:
        check_share("eta", self.eta)
        check_not_negative("sigma_y", self.sigma_y)
        if self.travel_length < 1 or self.travel_repeat < 1:
            raise OptionError(
                f"travel_length is {self.travel_length} and travel_repeat {self.travel_repeat};"
                " both must be at least 1"
            )


class DDNM(Measured):
    """DDNM at work on one batch.

    Args:
        low_resolution: the faces, each (3, n, n) in [-1, 1], of any sides n.
        prior: whose resolution is used.
        options: options.
    """

    def __init__(self, low_resolution: Sequence[torch.Tensor], prior: Prior, options: DDNMOptions) -> None:
        super().__init__(low_resolution, prior)
        self.eta, self.noisy = options.eta, options.sigma_y > 0
        self.sigma = 2 * options.sigma_y / self.singular_values.clamp(min=1e-12) * self.measured  # of ȳ, in [-1, 1]

    def step(self, x_t: torch.Tensor, state: Any, step: Step, sampler: Sampler) -> Stepped:
        """x0' = x0 − Σ_t A⁺(A x0 − y) (eq. 17), and x_{t−1} gets the noise that is then missing (eq. 18–19).

        Σ_t and Φ_t are diagonal in the spectral coordinates: λ = 1 as long as the measurement's own noise,
        √ᾱ_{t−1} σ_y/s, is below that of x_{t−1}, else their ratio; φ is what is left of the variance of x_{t−1}.
        """
        denoised = sampler.estimate(x_t, step)
        level, spread = math.sqrt(step.alphas_cumprod_prev), math.sqrt(1 - step.alphas_cumprod_prev)
        brought = level * self.sigma
        share = (spread / brought.clamp(min=1e-12)).clamp(max=1).where(brought > 0, torch.ones_like(brought))  # λ
        x0 = denoised.x0 + self.from_spectrum(share * self.disagreement(denoised.x0))
        eps = refreshed(denoised.eps, sampler.noise.normal(*x0.shape[1:]), self.eta)
        if self.noisy and not step.last:
            left = (1 - (share * brought / spread) ** 2).clamp(min=0).sqrt()  # √φ over the spread of x_{t−1}
            eps = self.from_spectrum(left * self.to_spectrum(eps))
        return sampler.solve(denoised._replace(x0=x0, eps=eps), step), x0, state


def plan(schedule: NoiseSchedule, sampling: SamplingOptions, options: DDNMOptions) -> list[Step]:
    """Return evenly spaced steps, with time travel if it is asked for."""
    steps = evenly_spaced(schedule, sampling, options)
    return time_travel(steps, options.travel_length, options.travel_repeat)


METHOD = Method(
    name="ddnm",
    summary="replace what the face says of the estimate, leave the null space to the prior",
    reference="Wang et al., ICLR 2023, arXiv 2212.00490",
    restoration=DDNM,
    options=DDNMOptions(),
    sampling=SamplingOptions(steps=100),
    plan=plan,
    solvers=("ddim",),
)
