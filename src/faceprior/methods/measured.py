"""What methods share that take the face as a measurement y = A x, with A the bicubic reduction."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from faceprior.errors import OptionError
from faceprior.images import resize
from faceprior.operators import bicubic_reduction
from faceprior.priors.adapter import Prior
from faceprior.sampling import Initial, Restoration, Sampler, Started, Step, noised


class Enlarged(Restoration):
    """A method that knows the bicubic enlargement of its faces.

    Args:
        low_resolution: the faces, each (3, n, n) in [-1, 1], of any sides n.
        prior: whose resolution R is used.

    Attributes:
        enlarged: the faces, (B, 3, R, R).
    """

    def __init__(self, low_resolution: Sequence[torch.Tensor], prior: Prior) -> None:
        self.enlarged = torch.cat([resize(face[None], prior.resolution) for face in low_resolution])

    def start(self, step: Step, sampler: Sampler, initial: Initial | None = None) -> Started:
        """Pure noise if the sampler starts at T; else the bicubic or initial face, noised to the first level."""
        return warm_start(self.enlarged, step, sampler, initial), None

    def guess(self, initial: Initial | None) -> torch.Tensor:
        """The clean face as far as it is known before sampling: the initial one over the bicubic one."""
        return self.enlarged if initial is None else initial.over(self.enlarged)


class Measured(Enlarged):
    """A method that knows A: y = A x is the antialiased bicubic reduction to the face's own side n.

    It works in the spectral coordinates of A (`faceprior.operators.SeparableOperator`), where A is a number for each
    coordinate, and images, measurements and noise of faces of any sides are all (B, 3, R, R).

    Args:
        low_resolution: the faces, each (3, n, n) in [-1, 1], of any sides n.
        prior: whose resolution R is used.

    Attributes:
        singular_values: s, (B, 1, R, R); 0 where A measures nothing.
        known: ȳ = Σ⁺ Uᵀ y, (B, 3, R, R); 0 where A measures nothing.
    """

    def __init__(self, low_resolution: Sequence[torch.Tensor], prior: Prior) -> None:
        super().__init__(low_resolution, prior)
        operators = [bicubic_reduction(prior.resolution, face.shape[-1]) for face in low_resolution]
        like = self.enlarged
        self.singular_values = torch.stack([operator.singular_values for operator in operators])[:, None].to(like)
        self._rows = torch.stack([operator.row_basis for operator in operators])[:, None].to(like)
        self._columns = torch.stack([operator.column_basis for operator in operators])[:, None].to(like)
        # on the CPU: not every accelerator has float64
        known = [own.known_spectrum(face.cpu().double()) for own, face in zip(operators, low_resolution, strict=True)]
        self.known = torch.stack(known).to(like)

    @property
    def measured(self) -> torch.Tensor:
        """Which coordinates A measures, boolean, (B, 1, R, R)."""
        return self.singular_values > 0

    def to_spectrum(self, images: torch.Tensor) -> torch.Tensor:
        """Spectral coordinates Vᵀ x of images, (B, 3, R, R) both."""
        return self._rows.mT @ images @ self._columns

    def from_spectrum(self, spectrum: torch.Tensor) -> torch.Tensor:
        """Inverse of `to_spectrum`."""
        return self._rows @ spectrum @ self._columns.mT

    def disagreement(self, x0: torch.Tensor) -> torch.Tensor:
        """ȳ − Vᵀ x0 where A measures, 0 elsewhere: what x0 lacks of the measurement, in spectral coordinates."""
        return (self.known - self.to_spectrum(x0)) * self.measured


def warm_start(guess: torch.Tensor, step: Step, sampler: Sampler, initial: Initial | None) -> torch.Tensor:
    """Pure noise if the sampler starts at T; else a guess, (B, 3, R, R), or the initial face over it, noised."""
    z = sampler.noise.normal(*guess.shape[1:])
    if initial is None:
        return z if step.pure_noise else noised(guess, z, step.alphas_cumprod)
    return noised(initial.over(guess), z, step.alphas_cumprod)


def refreshed(eps: torch.Tensor, z: torch.Tensor, eta: float) -> torch.Tensor:
    """Exchange a share of the predicted noise for fresh noise z: √(1 − η²) · eps + η · z."""
    return math.sqrt(1 - eta**2) * eps + eta * z


def check_share(name: str, value: float) -> None:
    """Raise OptionError unless a value lies in 0 to 1."""
    if not 0 <= value <= 1:
        raise OptionError(f"{name} is {value}; it must lie in 0 to 1")


def check_not_negative(name: str, value: float) -> None:
    """Raise OptionError unless a value is a number and at least 0."""
    if not 0 <= value < math.inf:
        raise OptionError(f"{name} is {value}; it must be at least 0")


def check_positive(name: str, value: float) -> None:
    """Raise OptionError unless a value is a number above 0."""
    if not 0 < value < math.inf:
        raise OptionError(f"{name} is {value}; it must be above 0")
