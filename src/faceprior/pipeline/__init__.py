"""Aligned faces in, faces out."""

from __future__ import annotations

from faceprior.pipeline.face_prior import FacePriorOutput, FacePriorPipeline, Samples

__all__ = ["FacePriorOutput", "FacePriorPipeline", "Samples"]
