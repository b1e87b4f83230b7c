"""DDRM, Denoising Diffusion Restoration Models (Kawar et al., NeurIPS 2022, arXiv 2201.11793).

Every spectral coordinate of A is sampled on its own: free where A measures nothing, from the measurement while the
diffusion is noisier than it, and pulled towards it once the diffusion is the less noisy of the two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from faceprior.methods.measured import Measured, check_not_negative, check_share, refreshed
from faceprior.methods.method import Method, SamplingOptions
from faceprior.priors.adapter import Prior
from faceprior.sampling import Initial, Sampler, Started, Step, Stepped, noised


@dataclass(frozen=True)
class DDRMOptions:
    """Options of DDRM.

    Attributes:
        eta: η; share of fresh noise where the measurement says nothing or less than the diffusion, 0 to 1.
        eta_b: η_b; weight of the measurement where it says more than the diffusion, 0 to 1.
        sigma_y: standard deviation of the noise in the face, on the scale of [0, 1] pixel values, at least 0.

    Raises:
        OptionError: a value is out of its range.
    """

    eta: float = 0.85
    eta_b: float = 1.0
    sigma_y: float = 0.0

    def __post_init__(self) -> None:
        check_share("eta", self.eta)
        check_share("eta_b", self.eta_b)
        check_not_negative("sigma_y", self.sigma_y)


class DDRM(Measured):
    """DDRM at work on one batch.

    The paper writes x for our x_t / √ᾱ_t, with noise of standard deviation σ_t = √(1 − ᾱ_t) / √ᾱ_t.

    Args:
        low_resolution: the faces, each (3, n, n) in [-1, 1], of any sides n.
        prior: whose resolution is used.
        options: options.
    """

    def __init__(self, low_resolution: Sequence[torch.Tensor], prior: Prior, options: DDRMOptions) -> None:
        super().__init__(low_resolution, prior)
        self.options = options
        noise = 2 * options.sigma_y / self.singular_values.clamp(min=1e-12)  # of ȳ, in [-1, 1]
        self.sigma = noise.where(self.measured, torch.full_like(noise, math.inf))

    def start(self, step: Step, sampler: Sampler, initial: Initial | None = None) -> Started:
        """x̄_T ~ N(ȳ, σ_T² − σ_y²/s²) where A measures that well, N(0, σ_T²) elsewhere (eq. 4).

        Below T the enlarged face, or at any level the initial one, stands for the 0.
        """
        sigma = math.sqrt(1 - step.alphas_cumprod) / math.sqrt(step.alphas_cumprod)
        unknown = initial is None and step.pure_noise
        centre = torch.zeros_like(self.enlarged) if unknown else self.to_spectrum(self.guess(initial))
        held = self.sigma < sigma
        centre = self.known.where(held, centre)
        left = (1 - (self.sigma.where(held, torch.zeros_like(self.sigma)) / sigma) ** 2).sqrt()
        z = self.to_spectrum(sampler.noise.normal(*self.enlarged.shape[1:]))
        return self.from_spectrum(noised(centre, left * z, step.alphas_cumprod)), None

    def step(self, x_t: torch.Tensor, state: Any, step: Step, sampler: Sampler) -> Stepped:
        """The three cases of eq. 7–8, written as the x̄0 and ε̄ whose DDIM step is x̄_{t−1} = x̄0 + σ_{t−1} ε̄."""
        denoised = sampler.estimate(x_t, step)
        sigma = math.sqrt(1 - step.alphas_cumprod_prev) / math.sqrt(step.alphas_cumprod_prev)
        z = self.to_spectrum(sampler.noise.normal(*denoised.x0.shape[1:]))
        free = self.to_spectrum(denoised.x0)
        disagreement = (self.known - free) * self.measured
        # noisier than the diffusion, or not measured at all
        unmeasured = refreshed(self.to_spectrum(denoised.eps), z, self.options.eta)
        noisier = refreshed(disagreement / self.sigma.clamp(min=1e-12), z, self.options.eta)
        eps = noisier.where(self.measured, unmeasured)
        # less noisy than the diffusion
        held = self.sigma <= sigma
        weight = self.options.eta_b * held.to(free)
        used = weight * self.sigma.where(held, torch.zeros_like(self.sigma)) / max(sigma, 1e-12)
        eps = ((1 - used**2).sqrt() * z).where(held, eps)
        x0 = self.from_spectrum(free + weight * disagreement)
        return sampler.solve(denoised._replace(x0=x0, eps=self.from_spectrum(eps)), step), x0, state


METHOD = Method(
    name="ddrm",
    summary="sample every spectral coordinate of the reduction on its own",
    reference="Kawar et al., NeurIPS 2022, arXiv 2201.11793",
    restoration=DDRM,
    options=DDRMOptions(),
    sampling=SamplingOptions(steps=20),
    solvers=("ddim",),
)
