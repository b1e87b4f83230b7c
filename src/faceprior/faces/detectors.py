"""Which face detectors there are."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from faceprior.errors import OptionError
from faceprior.faces.detection import FaceDetector

DetectorName = Literal["centerface", "yunet"]


def load_detector(name: DetectorName = "centerface", model: str | Path | None = None) -> FaceDetector:
    """Load a face detector.

    Args:
        name: "centerface", whose network comes inside the package, or "yunet" (OpenCV).
        model: of YuNet: an ONNX file or a hub id; None takes the published one. CenterFace has its own.

    Raises:
        OptionError: the name is unknown, or CenterFace was given a model.
        FacePriorError: OpenCV is not installed.
        WeightsError: the model cannot be found or is not what it should be.
    """
    if name not in get_args(DetectorName):
        raise OptionError(f"face detector {name!r} is not known; choose {' or '.join(get_args(DetectorName))}")
    if name == "yunet":
        from faceprior.faces.yunet import YuNetDetector

        return YuNetDetector(model)
    if model is not None:
        raise OptionError("the detector centerface takes no model file; choose the detector yunet for one")
    from faceprior.faces.centerface import CenterFace

    return CenterFace()
