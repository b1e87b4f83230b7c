"""Measuring restorations."""

from __future__ import annotations

from faceprior.evaluation.frechet import frechet_distance
from faceprior.evaluation.metrics import lr_consistency, psnr, spread, ssim

__all__ = ["frechet_distance", "lr_consistency", "psnr", "spread", "ssim"]
