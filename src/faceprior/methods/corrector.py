"""The corrector alone: a face in one pass, without any sample; the line that sampling has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from faceprior.corrector import Corrector
from faceprior.errors import OptionError
from faceprior.methods.method import Method, NoOptions
from faceprior.priors.adapter import Prior
from faceprior.sampling import Initial, Restoration, Sampler, Started, Step


class CorrectorAlone(Restoration):
    """The corrector's expectation of the clean face; draws no noise.

    Args:
        low_resolution: the faces, each (3, n, n) in [-1, 1].
        prior: whose resolution and noise schedule the corrector must serve.
        options: none.
        corrector: the corrector.

    Raises:
        OptionError: there is no corrector, or it does not fit the prior.
    """

    def __init__(
        self,
        low_resolution: Sequence[torch.Tensor],
        prior: Prior,
        options: NoOptions,  # noqa: ARG002
        corrector: Corrector | None = None,
    ) -> None:
        if corrector is None:
            raise OptionError("the method corrector needs a corrector; name one with --corrector")
        corrector.check(prior.resolution, prior.schedule, corrector.network.stride)
        self.corrector = corrector
        self.seen = torch.cat([corrector.network.see(face[None]) for face in low_resolution])

    def start(self, step: Step, sampler: Sampler, initial: Initial | None = None) -> Started:  # noqa: ARG002
        """The corrected faces; raises OptionError if there are initial ones."""
        if initial is not None:
            raise OptionError(
                "corrector does not sample, so it cannot start from a face; choose a method with a prior"
            )
        return self.corrector.alone(self.seen).x0.clamp(-1, 1), None


METHOD = Method(
    name="corrector",
    summary="the corrector alone, in one pass, no prior",
    reference="",
    restoration=CorrectorAlone,
    sampling=None,
    uses_corrector=True,
    blind=True,
)
