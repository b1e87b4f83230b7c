import numpy as np
import pytest
import torch
from PIL import Image

from faceprior.cli.demo import ASTRONAUT_LANDMARKS
from faceprior.faces import load_detector
from faceprior.pipeline.photo import PhotoOptions, find_faces, is_aligned_crop, paste_faces
from faceprior.priors.card import TIGHT_TEMPLATE, ModelCard

CARD = ModelCard(kind="prior", name="some-prior", resolution=128, template=TIGHT_TEMPLATE)
EYES = 42.8  # pixels between the astronaut's eyes


@pytest.fixture(scope="module")
def detector():
    pytest.importorskip("dlib")
    return load_detector("dlib")


@pytest.fixture(scope="module")
def astronaut():
    return Image.fromarray(pytest.importorskip("skimage.data").astronaut())


@pytest.fixture(scope="module")
def astronaut_face(astronaut, detector):
    (face,) = find_faces(astronaut, detector, CARD)
    return face


def test_the_astronaut_is_found_where_she_is(astronaut_face):
    error = np.hypot(*np.subtract(astronaut_face.found.landmarks, ASTRONAUT_LANDMARKS).T) / EYES
    assert error[:3].max() < 0.05
    assert error.max() < 0.15


def test_only_pixels_of_the_face_change(astronaut, astronaut_face):
    photo = np.asarray(astronaut)
    result = paste_faces(photo, [astronaut_face], [torch.zeros(3, 128, 128)])
    changed = np.nonzero((result != photo).any(-1))
    assert changed[0].min() > 50
    assert changed[0].max() < 180
    assert changed[1].min() > 150
    assert changed[1].max() < 300


def test_a_photograph_is_told_from_an_aligned_crop(astronaut, astronaut_face):
    assert not is_aligned_crop(astronaut, [astronaut_face.found], CARD)
    assert is_aligned_crop(Image.new("RGB", (16, 16)), [], CARD)


def test_no_face_is_found_where_there_is_none(detector):
    assert find_faces(Image.new("RGB", (300, 200), "grey"), detector, CARD, PhotoOptions()) == []
