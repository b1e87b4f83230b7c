"""One step of reverse diffusion, from the clean estimate and the noise estimate.

x0 and eps are the (corrected) estimates at level t; ᾱ' is the level of the result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import torch

from faceprior.errors import OptionError
from faceprior.sampling.noise import NoiseSource
from faceprior.sampling.steps import Step

if TYPE_CHECKING:
    from faceprior.sampling.loop import Denoised

SolverName = Literal["ddim", "ddpm"]


class Solver(Protocol):
    """A rule from (x_t, x0, eps) to x_{t_prev}."""

    eps_from_clipped: ClassVar[bool]
    """Whether eps is derived again from the clipped x0 before the step."""

    def step(self, denoised: Denoised, step: Step, noise: NoiseSource) -> torch.Tensor:
        """Return x_{t_prev}, (B, 3, R, R)."""


@dataclass(frozen=True)
class DDIM:
    """DDIM (Song et al. 2021, eq. 12 and 16).

    Attributes:
        eta: share of ancestral noise, 0 (deterministic) to 1.
    """

    eta: float = 0.0
    eps_from_clipped: ClassVar[bool] = True

    def step(self, denoised: Denoised, step: Step, noise: NoiseSource) -> torch.Tensor:
        """Step by x' = √ᾱ' · x0 + √(1 − ᾱ' − σ²) · eps + σ · z."""
        level, level_prev = step.alphas_cumprod, step.alphas_cumprod_prev
        sigma = self.eta * math.sqrt((1 - level_prev) / (1 - level) * (1 - level / level_prev))
        direction = math.sqrt(max(0.0, 1 - level_prev - sigma**2))
        x_prev = math.sqrt(level_prev) * denoised.x0 + direction * denoised.eps
        return x_prev + sigma * noise.normal(*x_prev.shape[1:]) if sigma > 0 else x_prev


@dataclass(frozen=True)
class AncestralDDPM:
    """Ancestral DDPM (Ho et al. 2020, eq. 6–7), on any subset of steps.

    The variance is the prior's own where it learned a range (Nichol & Dhariwal 2021, eq. 15), else that of the
    posterior.
    """

    eps_from_clipped: ClassVar[bool] = False

    def step(self, denoised: Denoised, step: Step, noise: NoiseSource) -> torch.Tensor:
        """Step by x' = c₀ · x0 + c_t · x_t + σ · z, the posterior q(x' | x_t, x0)."""
        level, level_prev = step.alphas_cumprod, step.alphas_cumprod_prev
        alpha = level / level_prev
        beta = 1 - alpha
        of_x0 = math.sqrt(level_prev) * beta / (1 - level)
        of_x_t = math.sqrt(alpha) * (1 - level_prev) / (1 - level)
        mean = of_x0 * denoised.x0 + of_x_t * denoised.x_t
        if step.last:
            return mean
        log_posterior = math.log(beta * (1 - level_prev) / (1 - level))
        z = noise.normal(*mean.shape[1:])
        if denoised.variance_range is None:
            return mean + math.exp(0.5 * log_posterior) * z
        share = (denoised.variance_range + 1) / 2
        return mean + torch.exp(0.5 * (share * math.log(beta) + (1 - share) * log_posterior)) * z


def make_solver(name: SolverName, eta: float = 0.0) -> Solver:
    """Return the solver of that name.

    Raises:
        OptionError: the name is unknown, eta is outside 0 to 1, or given to a solver that has none.
    """
    if not 0 <= eta <= 1:
        raise OptionError(f"eta is {eta}; it must lie in 0 to 1")
    if name == "ddim":
        return DDIM(eta)
    if name == "ddpm":
        if eta:
            raise OptionError("eta belongs to the solver ddim; ddpm always draws the whole ancestral noise")
        return AncestralDDPM()
    raise OptionError(f"solver {name!r} is not known; choose ddim or ddpm")
