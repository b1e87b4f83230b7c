"""Finding faces and their five landmarks: what a detector is, and which ones there are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

from PIL import Image

from faceprior.errors import OptionError
from faceprior.faces.alignment import Points

DetectorName = Literal["centerface", "yunet"]

MIN_FACE = 24
"""Smallest face that is looked for by default: side of its box, in pixels."""


@dataclass(frozen=True)
class DetectedFace:
    """A face in a photograph; places are in pixels from the outer corner of the top left pixel.

    Attributes:
        box: left, top, right, bottom; a square as large as the face from hairline to chin, upright whichever way the
            face is turned. It may reach out of the photograph.
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
