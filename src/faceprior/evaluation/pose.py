"""How far a face is turned, by dlib's 5-point landmark predictor (King 2017, CC0)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from faceprior.errors import ImageError
from faceprior.evaluation.dlib_models import load_dlib, model_file
from faceprior.evaluation.identity import CHIP_SIDE
from faceprior.images import to_pil

_MODEL = "shape_predictor_5_face_landmarks.dat"
_PADDING = 0.25  # of a chip around the box that dlib's detector draws


class PoseMeter:
    """dlib's 5-point predictor.

    Raises:
        FacePriorError: the extra "research" is not installed.
    """

    def __init__(self) -> None:
        self._dlib = load_dlib()
        self._predictor = self._dlib.shape_predictor(str(model_file(_MODEL)))

    def __call__(self, chip: torch.Tensor) -> float:
        """Return how far the nose stands off the middle of the eyes, in distances between the eyes.

        0 for a face seen from the front; it grows with the yaw to either side.

        Args:
            chip: aligned face, (3, `CHIP_SIDE`, `CHIP_SIDE`) in [-1, 1].
        """
        margin = round(CHIP_SIDE * _PADDING / (1 + 2 * _PADDING))
        box = self._dlib.rectangle(margin, margin, CHIP_SIDE - margin, CHIP_SIDE - margin)
        found = self._predictor(np.asarray(to_pil(chip)), box)
        points = np.array([(point.x, point.y) for point in found.parts()], np.float64)
        # two corners of the image-right eye, two of the image-left eye, the base of the nose
        right, left, nose = points[:2].mean(0), points[2:4].mean(0), points[4]
        axis = right - left
        return abs(float((nose - (left + right) / 2) @ axis)) / max(float(axis @ axis), 1e-6)

    def chip(self, photo: Image.Image, path: Path, side: int = 512) -> Image.Image:
        """Cut the largest face out of a photograph, as dlib's chips are (`CHIP_TEMPLATE`).

        Args:
            photo: RGB.
            path: of the photograph, for the message.
            side: of the chip, in pixels.

        Raises:
            ImageError: no face is found.
        """
        pixels = np.asarray(photo)
        boxes = self._dlib.get_frontal_face_detector()(pixels, 1)
        if not boxes:
            raise ImageError(f"{path}: dlib finds no face in it")
        largest = max(boxes, key=lambda box: box.area())
        chip = self._dlib.get_face_chip(pixels, self._predictor(pixels, largest), size=side, padding=_PADDING)
        return Image.fromarray(chip)
