"""Measuring restorations."""

from __future__ import annotations

from faceprior.evaluation.metrics import lr_consistency, psnr, spread, ssim

__all__ = ["lr_consistency", "psnr", "spread", "ssim"]
