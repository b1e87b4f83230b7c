"""Finding faces and their five landmarks: what a detector is, and which ones there are."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from PIL import Image

from faceprior.errors import OptionError
from faceprior.faces.alignment import Points

DetectorName = Literal["auto", "dlib", "yunet"]

MIN_FACE = 24
"""Smallest face that is looked for by default: side of its box, in pixels."""


@dataclass(frozen=True)
class DetectedFace:
    """A face in a photograph; places are in pixels from the outer corner of the top left pixel.

    Attributes:
        box: left, top, right, bottom; from brows to chin, upright whichever way the face is turned. It may reach
            out of the photograph.
        landmarks: image-left eye, image-right eye, nose tip, image-left and image-right mouth corner of the face
            held upright, as `align` takes them.
        score: how sure the detector is; higher is surer, on a scale of its own.
    """

    box: tuple[float, float, float, float]
    landmarks: Points
    score: float

    @property
    def side(self) -> float:
        """Mean side of the box, in pixels."""
        left, top, right, bottom = self.box
        return (right - left + bottom - top) / 2


class FaceDetector(Protocol):
    """Whatever finds faces; several threads may call it at once."""

    @property
    def name(self) -> str:
        """Its name, for the records."""

    def __call__(self, photo: Image.Image, min_face: int = MIN_FACE) -> list[DetectedFace]:
        """Find the faces of a photograph.

        Args:
            photo: RGB.
            min_face: smallest face to look for, side of its box in pixels.

        Returns:
            Faces, the largest first; none is an empty list.
        """


def load_detector(name: DetectorName = "auto", model: str | Path | None = None) -> FaceDetector:
    """Load a face detector.

    Args:
        name: "dlib" (extra "faces", nothing to download) or "yunet" (extra "yunet"); "auto" takes YuNet if a model
            is given, else dlib.
        model: of YuNet: an ONNX file or a hub id; None takes the published one. dlib has its own.

    Raises:
        OptionError: the name is unknown, or dlib was given a model.
        FacePriorError: the extra is not installed.
        WeightsError: the model cannot be found or is not what it should be.
    """
    if name not in ("auto", "dlib", "yunet"):
        raise OptionError(f"face detector {name!r} is not known; choose auto, dlib or yunet")
    if name == "auto":
        dlib_is_here = importlib.util.find_spec("dlib") is not None
        yunet_is_here = importlib.util.find_spec("cv2") is not None
        name = "yunet" if model is not None or (yunet_is_here and not dlib_is_here) else "dlib"
    if name == "yunet":
        from faceprior.faces.yunet import YuNetDetector

        return YuNetDetector(model)
    if model is not None:
        raise OptionError("dlib's detector takes no model file; choose the detector yunet for one")
    from faceprior.faces.dlib_detector import DlibDetector

    return DlibDetector()
