"""YuNet (Wu, Peng and Yu 2023), a small face detection network, run by OpenCV."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from faceprior.errors import FacePriorError, WeightsError
from faceprior.faces.detection import MIN_FACE, DetectedFace
from faceprior.faces.search import find
from faceprior.hub import Address, download

MODEL_ID = "opencv/face_detection_yunet"
"""Hub id of the published model."""

MODEL_FILE = "face_detection_yunet_2023mar.onnx"
MODEL_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
"""Of the published file, as OpenCV's model collection (opencv_zoo) records it."""

_FIRST_SCORE, _OVERLAP, _MOST = 0.5, 0.3, 5000  # of OpenCV's own selection


class YuNetDetector:
    """Finds faces with YuNet.

    Args:
        model: ONNX file, or hub id; None takes the published one from the hub.

    Raises:
        FacePriorError: OpenCV is not installed.
        WeightsError: the model cannot be found, is not the published one, or OpenCV cannot read it.
    """

    name = "yunet"

    def __init__(self, model: str | Path | None = None) -> None:
        try:
            import cv2
        except ImportError as error:
            raise FacePriorError(
                "the detector yunet needs OpenCV, which is not installed: pip install 'faceprior[research]'"
            ) from error
        path = _model_file(MODEL_ID if model is None else model)
        try:
            self._network = cv2.FaceDetectorYN.create(
                str(path), "", (320, 320), score_threshold=_FIRST_SCORE, nms_threshold=_OVERLAP, top_k=_MOST
            )
        except cv2.error as error:
            reason = str(error).strip().splitlines()[0]
            raise WeightsError(f"{path}: OpenCV cannot read it as a YuNet model ({reason}); get it again") from error
        self._alone = threading.Lock()  # the network keeps its work in itself

    def __call__(self, photo: Image.Image, min_face: int = MIN_FACE) -> list[DetectedFace]:
        """Find the faces of a photograph; see `FaceDetector`."""
        return find(self.look, photo, min_face)

    def look(self, pictures: NDArray[np.uint8]) -> list[list[DetectedFace]]:
        """Find faces that are about upright; see `Look`."""
        with self._alone:
            return [self._faces(pixels) for pixels in pictures]

    def _faces(self, pixels: NDArray[np.uint8]) -> list[DetectedFace]:
        height, width = pixels.shape[:2]
        self._network.setInputSize((width, height))
        _, rows = self._network.detect(np.ascontiguousarray(pixels[..., ::-1]))  # OpenCV's order is BGR
        # x, y, width, height, five points and score in each row, from a pixel's outer corner; the person's right eye
        # comes first, so image-left, as in a template
        return [
            DetectedFace((x, y, x + width, y + height), list(zip(points[::2], points[1::2], strict=True)), score)
            for x, y, width, height, *points, score in ([] if rows is None else rows.tolist())
            if width > 0 and height > 0
        ]


def _model_file(model: str | Path) -> Path:
    path = Path(model).expanduser()
    if path.is_file():
        return path
    if str(model).count("/") != 1 or path.exists() or path.suffix:
        raise WeightsError(
            f"{model}: is not a file; download {MODEL_FILE} from https://huggingface.co/{MODEL_ID} and name its path"
        )
    path = download(Address(str(model), files=(MODEL_FILE,)), f"detector {model}")
    if (found := hashlib.sha256(path.read_bytes()).hexdigest()) != MODEL_SHA256:
        raise WeightsError(
            f"{path}: its sha256 {found[:12]}… is not the published {MODEL_SHA256[:12]}…;"
            " the file is damaged or was exchanged: get it again"
        )
    return path
