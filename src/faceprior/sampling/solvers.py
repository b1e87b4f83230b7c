"""One step of reverse diffusion, from the clean estimate and the noise estimate.

x0 and eps are the (corrected) estimates at level t; ᾱ' is the level of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol, get_args

import torch

from faceprior.errors import OptionError
from faceprior.sampling.noise import NoiseSource
from faceprior.sampling.steps import Step

SolverName = Literal["ddim", "ddpm", "dpmpp-2m", "unipc"]


class Denoised(NamedTuple):
    """What is estimated at a step, and what a method corrects; all tensors (B, 3, R, R).

    Attributes:
        x_t: the noisy image.
        x0: estimate of the clean image, clipped to [-1, 1].
        eps: estimate of the noise.
        variance_range: see `faceprior.priors.adapter.Estimate`; may be None.
    """

    x_t: torch.Tensor
    x0: torch.Tensor
    eps: torch.Tensor
    variance_range: torch.Tensor | None

    def detach(self) -> Denoised:
        """Return the values alone, without a graph."""
        variance_range = None if self.variance_range is None else self.variance_range.detach()
        return Denoised(self.x_t.detach(), self.x0.detach(), self.eps.detach(), variance_range)


class Solver(Protocol):
    """A rule from (x_t, x0, eps) to x_{t_prev}; one object serves one run on one batch: it may remember its steps."""

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


class _Past(NamedTuple):
    """What a multistep solver remembers of a step: the step and its corrected x0, (B, 3, R, R)."""

    step: Step
    x0: torch.Tensor


class DPMSolverPP2M:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2), second order from two estimates of x0.

    With λ = log(√ᾱ / √(1 − ᾱ)) and h = λ' − λ its first-order part is DDIM; the second-order part follows the
    line through the last two estimates. The first step after the start or a rise, and the one to the clean image,
    where h is infinite, are DDIM.
    """

    eps_from_clipped: ClassVar[bool] = True

    def __init__(self) -> None:
        self._past: _Past | None = None

    def step(self, denoised: Denoised, step: Step, noise: NoiseSource) -> torch.Tensor:  # noqa: ARG002
        """Step by x' = √ᾱ' · x0 + √(1 − ᾱ') · eps + √ᾱ' · (1 − e^{−h}) · h / (2 h_past) · (x0 − x0_past)."""
        past, self._past = _before(self._past, step), _Past(step, denoised.x0)
        return _multistep(denoised, step, past)


class UniPC:
    """UniPC (Zhao et al. 2023, arXiv 2302.04867), order 2 on x0 with B(h) = e^h − 1.

    Its predictor UniP is DPM-Solver++(2M). Its corrector UniC moves the x_t that was predicted by what the estimate
    made there tells of the step before, and asks the prior nothing. The move goes into eps, so that what a method
    has made of x_t stays.
    """

    eps_from_clipped: ClassVar[bool] = True

    def __init__(self) -> None:
        self._past: _Past | None = None
        self._older: _Past | None = None

    def step(self, denoised: Denoised, step: Step, noise: NoiseSource) -> torch.Tensor:  # noqa: ARG002
        """Correct x_t (UniC), then step from it (UniP)."""
        past = _before(self._past, step)
        older = None if past is None else _before(self._older, past.step)
        self._older, self._past = past, _Past(step, denoised.x0)
        if past is not None:
            moved = _unic(older, past, denoised.x0)
            denoised = denoised._replace(eps=denoised.eps + moved / math.sqrt(1 - step.alphas_cumprod))
        return _multistep(denoised, step, past)


def _before(past: _Past | None, step: Step) -> _Past | None:
    """What is remembered, if it led to this step: not after a rise."""
    return past if past is not None and past.step.t_prev == step.t else None


def _multistep(denoised: Denoised, step: Step, past: _Past | None) -> torch.Tensor:
    level_prev = step.alphas_cumprod_prev
    x_prev = math.sqrt(level_prev) * denoised.x0 + math.sqrt(1 - level_prev) * denoised.eps
    return x_prev if past is None or step.last else x_prev + _second_order(past, denoised.x0, step)


def _second_order(past: _Past, x0: torch.Tensor, step: Step) -> torch.Tensor:
    h = _width(step)
    return math.sqrt(step.alphas_cumprod_prev) * -math.expm1(-h) * h / (2 * _width(past.step)) * (x0 - past.x0)


def _unic(older: _Past | None, past: _Past, x0: torch.Tensor) -> torch.Tensor:
    """UniC less UniP: how far x_t is off, now that x0 there is known."""
    h, scale = _width(past.step), math.sqrt(past.step.alphas_cumprod_prev) * -math.expm1(-_width(past.step))
    if older is None:
        return scale / 2 * (x0 - past.x0)
    # ρ solves ρ_1 + ρ_2 = b_1 and r ρ_1 + ρ_2 = b_2: the estimate before `past` lies r · h from it, x0 lies h from it
    r = -_width(older.step) / h
    first = 1 / -h - 1 / math.expm1(-h)
    b_1, b_2 = first, 2 * (first / -h - 0.5 / math.expm1(-h))
    rho_1 = (b_1 - b_2) / (1 - r)
    corrected = rho_1 / r * (older.x0 - past.x0) + (b_1 - rho_1) * (x0 - past.x0)
    return scale * corrected - _second_order(older, past.x0, past.step)


def _width(step: Step) -> float:
    """h = λ' − λ of a step that does not lead to the clean image."""  # noqa: D403
    return _log_snr(step.alphas_cumprod_prev) - _log_snr(step.alphas_cumprod)


def _log_snr(alphas_cumprod: float) -> float:
    """λ = log(√ᾱ / √(1 − ᾱ))."""
    return (math.log(alphas_cumprod) - math.log1p(-alphas_cumprod)) / 2


def make_solver(name: SolverName, eta: float = 0.0) -> Solver:
    """Return a new solver of that name, for one run on one batch.

    Raises:
        OptionError: the name is unknown, eta is outside 0 to 1, or given to a solver that has none.
    """
    if not 0 <= eta <= 1:
        raise OptionError(f"eta is {eta}; it must lie in 0 to 1")
    if name not in (names := get_args(SolverName)):
        raise OptionError(f"solver {name!r} is not known; choose {', '.join(names[:-1])} or {names[-1]}")
    if name == "ddim":
        return DDIM(eta)
    if eta:
        raise OptionError("eta belongs to the solver ddim; the others have their own share of noise, all or none")
    solvers: dict[str, Callable[[], Solver]] = {"ddpm": AncestralDDPM, "dpmpp-2m": DPMSolverPP2M, "unipc": UniPC}
    return solvers[name]()
