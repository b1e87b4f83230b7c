"""ΠGDM, Pseudoinverse-Guided Diffusion Models (Song et al., ICLR 2023).

The clean estimate is guided by the score of the measurement under a Gaussian around it, taken back through the prior.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from faceprior.methods.measured import Measured, check_not_negative
from faceprior.methods.method import Method, SamplingOptions
from faceprior.priors.adapter import Prior
from faceprior.sampling import Sampler, Step, Stepped


@dataclass(frozen=True)
class PiGDMOptions:
    """Options of ΠGDM.

    Attributes:
        sigma_y: standard deviation of the noise in the face, on the scale of [0, 1] pixel values, at least 0.
        weight: of the guidance, at least 0; 1 is the paper's.

    Raises:
        OptionError: a value is out of its range.
    """

    sigma_y: float = 0.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_not_negative("sigma_y", self.sigma_y)
        check_not_negative("weight", self.weight)


class PiGDM(Measured):
    """ΠGDM at work on one batch.

    Args:
        low_resolution: the faces, each (3, n, n) in [-1, 1], of any sides n.
        prior: whose resolution is used.
        options: options.
    """

    differentiates: ClassVar[bool] = True

    def __init__(self, low_resolution: Sequence[torch.Tensor], prior: Prior, options: PiGDMOptions) -> None:
        super().__init__(low_resolution, prior)
        self.sigma, self.weight = 2 * options.sigma_y, options.weight

    def step(self, x_t: torch.Tensor, state: Any, step: Step, sampler: Sampler) -> Stepped:
        """x0' = x0 + √ᾱ_t · r_t² · (∂x0/∂x_t)ᵀ Aᵀ (r_t² A Aᵀ + σ_y² I)⁻¹ (y − A x0) (eq. 7, algorithm 1).

        r_t² = σ_t²/(1 + σ_t²) with σ_t² = (1 − ᾱ_t)/ᾱ_t, which is 1 − ᾱ_t: the variance of x0 given x_t if faces had
        unit variance. √ᾱ_t turns a gradient with respect to x_t into one with respect to x_t/√ᾱ_t.
        """
        variance = 1 - step.alphas_cumprod  # r_t²
        squares = self.singular_values**2
        gain = (
            variance * squares / (variance * squares + self.sigma**2).where(self.measured, torch.ones_like(squares))
        )
        with torch.enable_grad():
            denoised = sampler.estimate(x_t.detach().requires_grad_(), step)
        wanted = self.from_spectrum(gain * self.disagreement(denoised.x0))
        (guidance,) = torch.autograd.grad(denoised.x0, denoised.x_t, wanted)
        denoised = denoised.detach()
        x0 = denoised.x0 + self.weight * math.sqrt(step.alphas_cumprod) * guidance
        return sampler.solve(denoised._replace(x0=x0), step), x0, state


METHOD = Method(
    name="pigdm",
    summary="guide the estimate by the pseudo-inverse's residual, taken back through the prior",
    reference="Song et al., ICLR 2023, openreview 9_gsMA8MRKQ",
    restoration=PiGDM,
    options=PiGDMOptions(),
    sampling=SamplingOptions(steps=100, eta=1.0),
)
