"""Linear reductions of an image with exact pseudo-inverse and singular values.

A reduction that treats rows and columns alike and one after the other is A = rows ⊗ columns: two small matrices.
Their singular value decompositions give that of A, so nothing here is approximate or iterative.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F

_LANCZOS_LOBES = 3


class SeparableOperator:
    """A x = rows · x · columnsᵀ, for images (…, H, W).

    With rows = U_r S_r V_rᵀ and columns = U_c S_c V_cᵀ, the *spectral coordinates* of an image x are V_rᵀ x V_c,
    those of a measurement y are U_rᵀ y U_c; A multiplies the coordinate (i, j) by the singular value S_r,i · S_c,j.

    Args:
        rows: (m, H).
        columns: (n, W).

    Attributes:
        rows: (m, H), float64.
        columns: (n, W), float64.
        singular_values: float64, (H, W), one for each spectral coordinate of an image; 0 where A measures nothing.
        row_basis: V_r, float64, (H, H), orthonormal columns.
        column_basis: V_c, float64, (W, W).
    """

    def __init__(self, rows: torch.Tensor, columns: torch.Tensor) -> None:
        self.rows, self.columns = rows.double(), columns.double()
        self._row_range, row_values, self.row_basis = _decompose(self.rows)
        self._column_range, column_values, self.column_basis = _decompose(self.columns)
        self.singular_values = torch.outer(row_values, column_values)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """A x: (…, H, W) → (…, m, n)."""
        return _between(self.rows, images, self.columns.mT)

    def to_spectrum(self, images: torch.Tensor) -> torch.Tensor:
        """Spectral coordinates of images, (…, H, W) → (…, H, W)."""
        return _between(self.row_basis.mT, images, self.column_basis)

    def from_spectrum(self, spectrum: torch.Tensor) -> torch.Tensor:
        """Inverse of `to_spectrum`."""
        return _between(self.row_basis, spectrum, self.column_basis.mT)

    def known_spectrum(self, measurements: torch.Tensor) -> torch.Tensor:
        """What a measurement says of an image's spectral coordinates, Σ⁺ Uᵀ y: (…, m, n) → (…, H, W).

        0 where the singular value is 0; so `from_spectrum` of it is the pseudo-inverse A⁺ y.
        """
        spectrum = _between(self._row_range.mT, measurements, self._column_range)
        values = self.singular_values.to(spectrum)
        fitted = _fitted(spectrum, values.shape)
        return torch.where(values > 0, fitted / values.where(values > 0, torch.ones_like(values)), 0)


@lru_cache(maxsize=64)
def bicubic_reduction(resolution: int, side: int) -> SeparableOperator:
    """Return `faceprior.images.resize` from `resolution` to `side` pixels a side, any ratio, as an operator."""
    matrix = bicubic_matrix(resolution, side)
    return SeparableOperator(matrix, matrix)


def bicubic_matrix(size: int, side: int) -> torch.Tensor:
    """Antialiased bicubic reduction of a line, as `faceprior.images.resize` does it: (side, size), float64."""
    impulses = torch.eye(size, dtype=torch.float64)[None, None]
    return F.interpolate(impulses, size=(side, size), mode="bicubic", antialias=True, align_corners=False)[0, 0]


def lanczos_matrix(size: int, side: int) -> torch.Tensor:
    """Lanczos resizing of a line, three lobes, wider for a reduction, as Pillow does it: (side, size), float64."""
    scale = size / side
    support = max(1.0, scale)
    centres = (torch.arange(side, dtype=torch.float64)[:, None] + 0.5) * scale
    distances = (torch.arange(size, dtype=torch.float64) + 0.5 - centres) / support
    weights = torch.sinc(distances) * torch.sinc(distances / _LANCZOS_LOBES)
    weights = weights.where(distances.abs() < _LANCZOS_LOBES, torch.zeros_like(weights))
    return weights / weights.sum(1, keepdim=True)


def _decompose(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """U (m, m), singular values (H,) with those that are rounding errors set to 0, and V (H, H)."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=True)
    values = values.where(values > values.max() * max(matrix.shape) * torch.finfo(values.dtype).eps, 0.0)
    return left, F.pad(values, (0, matrix.shape[1] - len(values))), right.mT.contiguous()


def _between(left: torch.Tensor, middle: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return left.to(middle) @ middle @ right.to(middle)


def _fitted(values: torch.Tensor, shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
    """Cut or pad the last two dimensions with zeros at their ends."""
    height, width = shape[-2:]
    return F.pad(values, (0, width - values.shape[-1], 0, height - values.shape[-2]))
