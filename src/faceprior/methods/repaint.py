"""RePaint (Lugmayr et al., CVPR 2022, arXiv 2201.09865), inpainting between the pixels of a grid.

As in the paper's super-resolution mask every k-th pixel of a row and of a column is known, here from the enlarged
face, and the prior fills in the others. Known pixels replace the sample's after every step; going down each stretch
of steps several times lets the two grow together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from faceprior.corrector import make_condition
from faceprior.errors import OptionError
from faceprior.methods.measured import Enlarged
from faceprior.methods.method import Method, SamplingOptions, evenly_spaced
from faceprior.priors.adapter import Prior
from faceprior.priors.noise_schedule import NoiseSchedule
from faceprior.sampling import Sampler, Step, Stepped, noised, time_travel


@dataclass(frozen=True)
class RePaintOptions:
    """Options of RePaint.

    Attributes:
        stride: k; every k-th pixel of a row and of a column is known: 1, 2, 4 or 8.
        jump_length: j; steps of a stretch that is gone down several times, at least 1.
        jump_n_sample: r; how often it is gone down, at least 1; 1 never goes back up.

    Raises:
        OptionError: a value is out of its range.
    """

    stride: int = 2
    jump_length: int = 10
    jump_n_sample: int = 10

    def __post_init__(self) -> None:
        if self.stride not in (1, 2, 4, 8):
            raise OptionError(f"stride is {self.stride}; choose 1, 2, 4 or 8")
        if self.jump_length < 1 or self.jump_n_sample < 1:
            raise OptionError(
                f"jump_length is {self.jump_length} and jump_n_sample {self.jump_n_sample}; both must be at least 1"
            )


class RePaint(Enlarged):
    """RePaint at work on one batch.

    Args:
        low_resolution: the faces, each (3, n, n) in [-1, 1], of any sides n.
        prior: whose resolution is used.
        options: options.

    Raises:
        OptionError: the stride does not divide the prior's resolution.
    """

    def __init__(self, low_resolution: Sequence[torch.Tensor], prior: Prior, options: RePaintOptions) -> None:
        super().__init__(low_resolution, prior)
        if prior.resolution % options.stride:
            raise OptionError(f"stride is {options.stride}; it must divide the prior's resolution {prior.resolution}")
        self.stride = options.stride
        self.condition = torch.cat(
            [make_condition(face[None], prior.resolution, options.stride, "sampled") for face in low_resolution]
        )

    def step(self, x_t: torch.Tensor, state: Any, step: Step, sampler: Sampler) -> Stepped:
        """x_{t−1} = m ⊙ known_{t−1} + (1 − m) ⊙ x'_{t−1}, with known_{t−1} ~ q(x_{t−1} | y) (eq. 8)."""
        x_prev, x0, state = super().step(x_t, state, step, sampler)
        z = sampler.noise.normal(*self.condition.shape[1:])
        x_prev[..., :: self.stride, :: self.stride] = noised(self.condition, z, step.alphas_cumprod_prev)
        return x_prev, x0, state


def plan(schedule: NoiseSchedule, sampling: SamplingOptions, options: RePaintOptions) -> list[Step]:
    """Return evenly spaced steps with jumps back up."""
    steps = evenly_spaced(schedule, sampling, options)
    return time_travel(steps, options.jump_length, options.jump_n_sample)


METHOD = Method(
    name="repaint",
    summary="inpaint between known grid pixels, with jumps back to higher noise",
    reference="Lugmayr et al., CVPR 2022, arXiv 2201.09865",
    restoration=RePaint,
    options=RePaintOptions(),
    sampling=SamplingOptions(solver="ddpm", steps=250),
    plan=plan,
)
