"""Fréchet distance between two sets of embeddings."""

from __future__ import annotations

import torch

from faceprior.errors import DataError


def frechet_distance(embeddings: torch.Tensor, reference: torch.Tensor) -> float:
    """Squared Fréchet (2-Wasserstein) distance between Gaussians fitted to two sets (Dowson & Landau 1982).

    |μ₁ − μ₂|² + tr(C₁ + C₂ − 2 (C₁^½ C₂ C₁^½)^½), as FID has it (Heusel et al. 2017), with whatever embedding was
    taken. It falls with the number of pictures: compare only sets of one size, against the same reference.

    Args:
        embeddings: (N, D), N ≥ 2.
        reference: (M, D), M ≥ 2.

    Returns:
        At least 0, up to rounding; 0 for equal means and covariances.

    Raises:
        DataError: a set has fewer than two members.
    """
    if min(len(embeddings), len(reference)) < 2:
        raise DataError("a Fréchet distance needs at least two faces in each set")
    a, b = embeddings.double(), reference.double()
    covariance, reference_covariance = torch.cov(a.T), torch.cov(b.T)
    root = _square_root(covariance)
    # eigenvalues of C₁^½ C₂ C₁^½ are those of C₁ C₂, but of a symmetric matrix
    product = torch.linalg.eigvalsh(root @ reference_covariance @ root)
    overlap = product.clamp(min=0).sqrt().sum()
    shift = (a.mean(0) - b.mean(0)).square().sum()
    return float(shift + covariance.trace() + reference_covariance.trace() - 2 * overlap)


def _square_root(matrix: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
