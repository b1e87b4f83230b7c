"""Faces in, faces out: the diffusers pipeline and the workflow over files."""

from __future__ import annotations

from faceprior.pipeline.face_prior import FacePriorOutput, FacePriorPipeline

__all__ = ["FacePriorOutput", "FacePriorPipeline"]
