"""The pipeline and its networks as diffusers has them.

Importing diffusers takes seconds, so the command line, the page and `faceprior.FacePriorPipeline` do without.
"""

from __future__ import annotations

from faceprior.diffusers.models import BlindCorrector, GaussianResidualUNet, PaperCorrector
from faceprior.diffusers.pipeline import FacePriorPipeline

__all__ = ["BlindCorrector", "FacePriorPipeline", "GaussianResidualUNet", "PaperCorrector"]
