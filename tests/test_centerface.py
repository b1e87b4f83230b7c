import numpy as np
import pytest
import torch
from PIL import Image

from faceprior.errors import OptionError
from faceprior.faces import load_detector
from faceprior.faces.centerface import CenterFace

PUBLISHED = (
    -5.7138, 1.8332, 1.7142, -0.0141, 0.0578, 0.2655, 0.3102, 0.27, 0.6626, 0.4190, 0.4266, 0.6554, 0.3193, 0.6588,
    0.5738,
)  # fmt: skip
"""What onnxruntime 1.32 makes of the published `centerface.onnx` for `waves`, in row 7 and column 11."""


def waves():
    y, x = np.mgrid[:64, :96]
    return np.stack([127 + 120 * np.sin(x / (5 + c)) * np.cos(y / (7 - c)) for c in range(3)]).round()


@pytest.fixture(scope="module")
def detector():
    return CenterFace()


@pytest.fixture(scope="module")
def astronaut():
    return Image.fromarray(pytest.importorskip("skimage.data").astronaut())


def test_the_network_computes_what_the_published_one_does(detector):
    with torch.inference_mode():
        (maps,) = detector._network(torch.from_numpy(waves()).float()[None])
    assert maps.shape == (15, 16, 24)
    assert np.abs(maps[:, 7, 11].numpy() - PUBLISHED).max() < 0.005  # its weights are in half precision


def test_a_face_is_seen_once_at_its_place_whatever_the_sides_of_the_picture(detector, astronaut):
    (whole,) = detector.look(np.asarray(astronaut)[None])[0]
    (part,) = detector.look(np.asarray(astronaut.crop((100, 20, 401, 323)))[None])[0]
    assert np.abs(np.array(whole.landmarks) - np.array(part.landmarks) - (100, 20)).max() < 4
    left, top, right, bottom = whole.box
    assert left < 204 - 10
    assert right > 247 + 10
    assert top < 101 - 20
    assert bottom > 141 + 5


def test_a_picture_is_seen_alike_alone_and_beside_another(detector, astronaut):
    pixels = np.asarray(astronaut.crop((100, 20, 356, 276)))
    (alone,), (empty, together) = (
        detector.look(pixels[None]),
        detector.look(np.stack([np.zeros_like(pixels), pixels])),
    )
    assert empty == []
    assert np.allclose(alone[0].landmarks, together[0].landmarks, atol=1e-2)


def test_options_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(OptionError, match="centerface takes no model"):
        load_detector("centerface", tmp_path)
    with pytest.raises(OptionError, match="choose centerface or yunet"):
        load_detector("retina")
