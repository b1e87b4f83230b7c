"""SDEdit (Meng et al., ICLR 2022, arXiv 2108.01073).

The enlarged face is noised halfway and denoised again; nothing holds it to the measurement on the way down.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from faceprior.methods.measured import Enlarged
from faceprior.methods.method import Method, NoOptions, SamplingOptions
from faceprior.priors.adapter import Prior
from faceprior.sampling import Initial, Sampler, Started, Step, noised


class SDEdit(Enlarged):
    """SDEdit at work on one batch; its t₀ is the sampler's `start`.

    Args:
        low_resolution: the faces, each (3, n, n) in [-1, 1], of any sides n.
        prior: whose resolution is used.
        options: none of its own.
    """

    def __init__(self, low_resolution: Sequence[torch.Tensor], prior: Prior, options: NoOptions) -> None:  # noqa: ARG002
        super().__init__(low_resolution, prior)

    def start(self, step: Step, sampler: Sampler, initial: Initial | None = None) -> Started:
        """x_{t₀} = √ᾱ · y + √(1 − ᾱ) · z (algorithm 2), even if t₀ is T."""
        z = sampler.noise.normal(*self.enlarged.shape[1:])
        return noised(self.guess(initial), z, step.alphas_cumprod), None


METHOD = Method(
    name="sdedit",
    summary="noise the enlarged face halfway and denoise it, unheld",
    reference="Meng et al., ICLR 2022, arXiv 2108.01073",
    restoration=SDEdit,
    sampling=SamplingOptions(solver="ddpm", steps=500, start=0.5),
)
