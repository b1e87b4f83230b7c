"""DPS, Diffusion Posterior Sampling (Chung et al., ICLR 2023, arXiv 2209.14687).

Every ancestral step is followed by one of gradient descent on the distance between the face and the reduced clean
estimate, through the prior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from faceprior.methods.measured import Measured, check_not_negative
from faceprior.methods.method import Method, SamplingOptions
from faceprior.priors.adapter import Prior
from faceprior.sampling import Sampler, Step, Stepped


@dataclass(frozen=True)
class DPSOptions:
    """Options of DPS.

    Attributes:
        zeta: ζ; step along the gradient of ‖y − A x0‖ with respect to x_t, both on the scale of [-1, 1] pixel
            values. At least 0. The paper's is for 1000 steps; fewer want a larger one.

    Raises:
        OptionError: a value is out of its range.
    """

    zeta: float = 1.0

    def __post_init__(self) -> None:
        check_not_negative("zeta", self.zeta)


class DPS(Measured):
    """DPS at work on one batch.

    Args:
        low_resolution: the faces, each (3, n, n) in [-1, 1], of any sides n.
        prior: whose resolution is used.
        options: options.
    """

    differentiates: ClassVar[bool] = True

    def __init__(self, low_resolution: Sequence[torch.Tensor], prior: Prior, options: DPSOptions) -> None:
        super().__init__(low_resolution, prior)
        self.zeta = options.zeta

    def step(self, x_t: torch.Tensor, state: Any, step: Step, sampler: Sampler) -> Stepped:
        """x_{t−1} = x'_{t−1} − ζ ∇‖y − A x0(x_t)‖ (algorithm 1; the step size is the authors' code's)."""
        with torch.enable_grad():
            denoised = sampler.estimate(x_t.detach().requires_grad_(), step)
            residual = self.singular_values * self.disagreement(denoised.x0)  # Uᵀ(y − A x0), as long as y − A x0
            distances = torch.linalg.vector_norm(residual, dim=(1, 2, 3)).sum()  # of each face: none sees another's
        (gradient,) = torch.autograd.grad(distances, denoised.x_t)
        denoised = denoised.detach()
        return sampler.solve(denoised, step) - self.zeta * gradient, denoised.x0, state


METHOD = Method(
    name="dps",
    summary="descend the distance to the face through the prior after every step",
    reference="Chung et al., ICLR 2023, arXiv 2209.14687",
    restoration=DPS,
    options=DPSOptions(),
    sampling=SamplingOptions(solver="ddpm", steps=1000),
)
