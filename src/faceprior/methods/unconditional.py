"""Sampling from the prior alone: what it thinks a face is."""

from __future__ import annotations

import torch

from faceprior.sampling import NoiseSource, Restoration, Step


class Unconditional(Restoration):
    """No measurement and no correction.

    Args:
        resolution: side R of the faces.
    """

    def __init__(self, resolution: int) -> None:
        self.resolution = resolution

    def start(self, step: Step, noise: NoiseSource) -> torch.Tensor:  # noqa: ARG002
        """Pure noise."""
        return noise.normal(3, self.resolution, self.resolution)
