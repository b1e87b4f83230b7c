"""ILVR, Iterative Latent Variable Refinement (Choi et al., ICCV 2021, arXiv 2108.02938).

After every step the low frequencies of the sample are exchanged for those of the face, noised to the same level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from faceprior.errors import OptionError
from faceprior.methods.measured import Enlarged, Measured, check_share
from faceprior.methods.method import Method, SamplingOptions
from faceprior.operators import bicubic_reduction
from faceprior.priors.adapter import Prior
from faceprior.sampling import Sampler, Step, Stepped, noised


@dataclass(frozen=True)
class ILVROptions:
    """Options of ILVR.

    Attributes:
        widening: the low-pass factor N over the input's own scale, at least 1. At 1 the result agrees with the whole
            input; above, it only shares the input's coarser look.
        until: the conditioned range ends here: x_t is refined where t ≥ until · T. 0 to 1; 0 refines all of them,
            the clean image too.

    Raises:
        OptionError: a value is out of its range.
    """

    widening: float = 1.0
    until: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.widening <= 16:
            raise OptionError(f"widening is {self.widening}; it must lie in 1 to 16")
        check_share("until", self.until)


class ILVR(Measured):
    """ILVR at work on one batch.

    The low-pass filter φ is A⁺A, reducing by N and enlarging again with the pseudo-inverse: the paper's pair of
    bicubic resizings is nearly that, but no projection, so its samples agree with the input only nearly.

    Args:
        low_resolution: the faces, each (3, n, n) in [-1, 1], of any sides n.
        prior: whose resolution and noise schedule are used.
        options: options.
    """

    def __init__(self, low_resolution: Sequence[torch.Tensor], prior: Prior, options: ILVROptions) -> None:
        sides = [max(1, round(face.shape[-1] / options.widening)) for face in low_resolution]
        coarse = [
            bicubic_reduction(face.shape[-1], side).forward(face)
            for face, side in zip(low_resolution, sides, strict=True)
        ]
        super().__init__(coarse, prior)
        self.enlarged = Enlarged(low_resolution, prior).enlarged  # a warm start sees all of the face
        self.until = options.until * len(prior.schedule)

    def step(self, x_t: torch.Tensor, state: Any, step: Step, sampler: Sampler) -> Stepped:
        """x_{t−1} = φ(y_{t−1}) + x'_{t−1} − φ(x'_{t−1}), with y_{t−1} ~ q(y_{t−1} | y) (algorithm 1)."""
        x_prev, x0, state = super().step(x_t, state, step, sampler)
        if max(step.t_prev, 0) >= self.until:
            z = self.to_spectrum(sampler.noise.normal(*x_prev.shape[1:]))
            y = noised(self.known, z, step.alphas_cumprod_prev)
            x_prev = x_prev + self.from_spectrum((y - self.to_spectrum(x_prev)) * self.measured)
        return x_prev, x0, state


METHOD = Method(
    name="ilvr",
    summary="exchange the sample's low frequencies for the noised face's after every step",
    reference="Choi et al., ICCV 2021, arXiv 2108.02938",
    restoration=ILVR,
    options=ILVROptions(),
    sampling=SamplingOptions(solver="ddpm", steps=100),  # as its authors' published command; the paper has 1000 too
)
