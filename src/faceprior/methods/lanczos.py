"""Lanczos enlargement: no prior, a little sharper than bicubic, with ringing at edges."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from faceprior.errors import OptionError
from faceprior.methods.method import Method, NoOptions
from faceprior.operators import lanczos_matrix
from faceprior.priors.adapter import Prior
from faceprior.sampling import Initial, Restoration, Sampler, Started, Step


class Lanczos(Restoration):
    """Lanczos enlargement with three lobes, as Pillow's; draws no noise.

    Args:
        low_resolution: the faces, each (3, n, n) in [-1, 1].
        prior: whose resolution is used.
        options: none.
    """

    def __init__(self, low_resolution: Sequence[torch.Tensor], prior: Prior, options: NoOptions) -> None:  # noqa: ARG002
        enlarged = []
        for face in low_resolution:
            matrix = lanczos_matrix(face.shape[-1], prior.resolution).to(face)  # (R, n)
            enlarged.append(matrix @ face @ matrix.mT)
        self.enlarged = torch.stack(enlarged)

    def start(self, step: Step, sampler: Sampler, initial: Initial | None = None) -> Started:  # noqa: ARG002
        """The enlarged faces; raises OptionError if there are initial ones."""
        if initial is not None:
            raise OptionError("lanczos does not sample, so it cannot start from a face; choose a method with a prior")
        return self.enlarged, None


METHOD = Method(
    name="lanczos",
    summary="Lanczos enlargement with three lobes, no prior",
    reference="Duchon, J. Applied Meteorology 1979",
    restoration=Lanczos,
    sampling=None,
)
