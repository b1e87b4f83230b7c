"""Sampling from the prior alone: what it thinks a face is."""

from __future__ import annotations

import torch

from faceprior.sampling import Denoised, NoiseSource, Step


class Unconditional:
    """No measurement and no correction; a `faceprior.sampling.Restoration`.

    Args:
        resolution: side R of the faces.
    """

    def __init__(self, resolution: int) -> None:
        self.resolution = resolution

    def start(self, step: Step, noise: NoiseSource) -> torch.Tensor:  # noqa: ARG002
        """Pure noise."""
        return noise.normal(3, self.resolution, self.resolution)

    def correct(self, denoised: Denoised, step: Step, noise: NoiseSource) -> Denoised:  # noqa: ARG002
        """Leave the prior's estimate as it is."""
        return denoised

    def finish(self, x_prev: torch.Tensor, step: Step, noise: NoiseSource) -> torch.Tensor:  # noqa: ARG002
        """Leave the step's result as it is."""
        return x_prev
