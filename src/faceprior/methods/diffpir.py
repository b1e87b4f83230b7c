"""DiffPIR, plug-and-play image restoration with diffusion (Zhu et al., CVPR-W 2023, arXiv 2305.08995).

The clean estimate is the denoiser of half-quadratic splitting: each step solves for the image that is near it and
fits the measurement, then goes on from there with partly fresh noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from faceprior.methods.measured import Measured, check_not_negative, check_positive, check_share, refreshed
from faceprior.methods.method import Method, SamplingOptions
from faceprior.priors.adapter import Prior
from faceprior.sampling import Sampler, Step, Stepped


@dataclass(frozen=True)
class DiffPIROptions:
    """Options of DiffPIR; λ and ζ are its authors' for the super-resolution of faces (their `configs/sisr.yaml`).

    Attributes:
        lam: λ; weight of the prior in the sub-problem, above 0.
        zeta: ζ; share of the noise's variance that is fresh in each step, 0 to 1.
        sigma_n: σ_n, standard deviation of the noise in the face, on the scale of [0, 1] pixel values, at least 0.
            The authors' code takes 0.001 for a face without noise.

    Raises:
        OptionError: a value is out of its range.
    """

    lam: float = 1.0
    zeta: float = 0.1
    sigma_n: float = 0.001

    def __post_init__(self) -> None:
        check_positive("lam", self.lam)
        check_share("zeta", self.zeta)
        check_not_negative("sigma_n", self.sigma_n)


class DiffPIR(Measured):
    """DiffPIR at work on one batch.

    Args:
        low_resolution: the faces, each (3, n, n) in [-1, 1], of any sides n.
        prior: whose resolution is used.
        options: options.
    """

    def __init__(self, low_resolution: Sequence[torch.Tensor], prior: Prior, options: DiffPIROptions) -> None:
        super().__init__(low_resolution, prior)
        self.options = options

    def step(self, x_t: torch.Tensor, state: Any, step: Step, sampler: Sampler) -> Stepped:
        """x0' = argmin ‖y − A x‖² + ρ_t ‖x − x0‖² with ρ_t = λ σ_n²/σ̄_t², then ε̂ from it (algorithm 1).

        In spectral coordinates x̄0' = (s² ȳ + ρ_t x̄0)/(s² + ρ_t). σ̄_t is √(1 − ᾱ_t)/√ᾱ_t; the authors set it, on
        the scale of [-1, 1], against σ_n on that of [0, 1], and their λ is for that.
        """
        denoised = sampler.estimate(x_t, step)
        options, level = self.options, step.alphas_cumprod
        rho = options.lam * options.sigma_n**2 * level / (1 - level)
        squares = self.singular_values**2
        gain = squares / (squares + rho).where(self.measured, torch.ones_like(squares))
        x0 = denoised.x0 + self.from_spectrum(gain * self.disagreement(denoised.x0))
        eps = (x_t - math.sqrt(level) * x0) / math.sqrt(1 - level)
        z = sampler.noise.normal(*x0.shape[1:])
        eps = refreshed(eps, z, math.sqrt(options.zeta))
        return sampler.solve(denoised._replace(x0=x0, eps=eps), step), x0, state


METHOD = Method(
    name="diffpir",
    summary="solve for the image near the estimate that fits the face, then add partly fresh noise",
    reference="Zhu et al., CVPR workshops 2023, arXiv 2305.08995",
    restoration=DiffPIR,
    options=DiffPIROptions(),
    sampling=SamplingOptions(steps=100),
    solvers=("ddim",),
)
