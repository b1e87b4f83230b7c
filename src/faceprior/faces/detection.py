"""Finding faces and their five landmarks: what a detector is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from faceprior.faces.alignment import Points

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

    def moved(self, by: float, factor: float) -> DetectedFace:
        """Return the same face moved to the right and downwards, then enlarged by a factor with its photograph."""
        left, top, right, bottom = ((value + by) * factor for value in self.box)
        landmarks = [((x + by) * factor, (y + by) * factor) for x, y in self.landmarks]
        return DetectedFace((left, top, right, bottom), landmarks, self.score)


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
