"""dlib's HOG face detector and 68-point landmark predictor (Kazemi and Sullivan 2014)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from faceprior.faces.closer_look import find
from faceprior.faces.detection import MIN_FACE, DetectedFace
from faceprior.faces.dlib_models import load_dlib, model_file
from faceprior.faces.search import Seen
from faceprior.faces.threads import PerThread

_LANDMARKS = "shape_predictor_68_face_landmarks.dat"

# of the 68 points: the outline of each eye, the tip of the nose, the outer and the inner corner of the mouth, whose
# middle is where the template of the embedded prior has the corner
_FIVE = (tuple(range(36, 42)), tuple(range(42, 48)), (30,), (48, 60), (54, 64))


class DlibDetector:
    """Finds faces with dlib; the models come inside the package `face_recognition_models`.

    Raises:
        FacePriorError: the extra "faces" is not installed.
    """

    name = "dlib"
    window = 80
    least_score = 0.35

    def __init__(self) -> None:
        dlib = load_dlib()
        self._rectangle = dlib.rectangle
        self._detector = PerThread(dlib.get_frontal_face_detector)
        self._predictor = dlib.shape_predictor(str(model_file(_LANDMARKS)))

    def __call__(self, photo: Image.Image, min_face: int = MIN_FACE) -> list[DetectedFace]:
        """Find the faces of a photograph; see `FaceDetector`."""
        return find(self, photo, min_face)

    def look(self, pixels: NDArray[np.uint8]) -> list[Seen]:
        """Find upright faces of 80 pixels and more in RGB, (H, W, 3)."""
        rectangles, scores, _ = self._detector.own.run(np.ascontiguousarray(pixels), 0, 0.0)
        return [
            Seen((box.left() + box.right() + 1) / 2, (box.top() + box.bottom() + 1) / 2, float(box.width()), score)
            for box, score in zip(rectangles, scores, strict=True)
        ]

    def landmarks(self, pixels: NDArray[np.uint8], seen: Seen) -> NDArray[np.float64]:
        """Return the five landmarks of a face that was seen, (5, 2)."""
        left, top = seen.x - seen.side / 2, seen.y - seen.side / 2
        corners = (left, top, left + seen.side - 1, top + seen.side - 1)
        shape = self._predictor(pixels, self._rectangle(*(round(corner) for corner in corners)))
        points = np.array([(part.x, part.y) for part in shape.parts()], np.float64) + 0.5  # dlib counts centres
        return np.array([points[list(group)].mean(0) for group in _FIVE])
