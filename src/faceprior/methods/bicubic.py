"""Bicubic enlargement: no prior, the line that every method has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from faceprior.errors import OptionError
from faceprior.methods.measured import Enlarged
from faceprior.methods.method import Method, NoOptions
from faceprior.priors.adapter import Prior
from faceprior.sampling import Initial, Sampler, Started, Step


class Bicubic(Enlarged):
    """Bicubic enlargement (a = −0.5); draws no noise.

    Args:
        low_resolution: the faces, each (3, n, n) in [-1, 1].
        prior: whose resolution is used.
        options: none.
    """

    def __init__(self, low_resolution: Sequence[torch.Tensor], prior: Prior, options: NoOptions) -> None:  # noqa: ARG002
        super().__init__(low_resolution, prior)

    def start(self, step: Step, sampler: Sampler, initial: Initial | None = None) -> Started:  # noqa: ARG002
        """The enlarged faces; raises OptionError if there are initial ones."""
        if initial is not None:
            raise OptionError("bicubic does not sample, so it cannot start from a face; choose a method with a prior")
        return self.enlarged, None


METHOD = Method(
    name="bicubic",
    summary="bicubic enlargement, no prior",
    reference="Keys, IEEE Trans. ASSP 1981",
    restoration=Bicubic,
    sampling=None,
)
