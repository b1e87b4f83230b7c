"""Faces in photographs: find them, align them to a prior's template, measure their detail, paste them back."""

from __future__ import annotations

from faceprior.faces.alignment import Points, align, similarity_transform
from faceprior.faces.detection import DetectedFace, FaceDetector
from faceprior.faces.detectors import load_detector

__all__ = ["DetectedFace", "FaceDetector", "Points", "align", "load_detector", "similarity_transform"]
