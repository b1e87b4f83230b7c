import numpy as np
import pytest
import torch
from PIL import Image

from faceprior.errors import OptionError
from faceprior.faces import load_detector, similarity_transform
from faceprior.faces.centerface import CenterFace
from faceprior.priors.card import TIGHT_TEMPLATE

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


@pytest.mark.parametrize("turn", [0, 20, -20, 90, 180])
@pytest.mark.parametrize("side", [24, 40, 90])
def test_a_turned_face_is_aligned_as_the_upright_one(detector, astronaut, side, turn):
    (whole,) = detector(astronaut)
    factor, known = side / whole.side, np.array(whole.landmarks)
    size = round(512 * factor)
    small = astronaut.resize((size, size), Image.Resampling.BICUBIC).rotate(-turn, Image.Resampling.BICUBIC)
    (face,) = detector(small)
    middle = complex(size, size) / 2
    true = (known @ (1, 1j) * factor - middle) * np.exp(1j * np.radians(turn)) + middle
    there, back = (
        similarity_transform([(p.real, p.imag) for p in points], TIGHT_TEMPLATE)
        for points in (true, np.array(face.landmarks) @ (1, 1j))
    )
    eyes = np.array(TIGHT_TEMPLATE[:2])
    aligned = (back[:, :2] @ np.array([true[:2].real, true[:2].imag]) + back[:, 2:]).T
    expected = (there[:, :2] @ np.array([true[:2].real, true[:2].imag]) + there[:, 2:]).T
    assert np.hypot(*(aligned - expected).T).max() < 0.05 * np.hypot(*(eyes[1] - eyes[0]))


@pytest.mark.parametrize("side", [24, 60])
def test_a_face_that_lies_on_its_side_or_head_is_never_misread_as_upright(detector, astronaut, side):
    (whole,) = detector(astronaut)
    factor, known = side / whole.side, np.array(whole.landmarks) @ (1, 1j)
    size = round(512 * factor)
    small = astronaut.resize((size, size), Image.Resampling.BICUBIC)
    middle = complex(size, size) / 2
    for turn in range(0, 360, 30):
        (face,) = detector(small.rotate(-turn, Image.Resampling.BICUBIC))
        true = (known * factor - middle) * np.exp(1j * np.radians(turn)) + middle
        assert np.abs(np.array(face.landmarks) @ (1, 1j) - true).max() < 0.08 * side, turn


def test_of_several_faces_none_is_found_twice(detector, astronaut):
    scene = Image.new("RGB", (1050, 360), (90, 110, 130))
    head = astronaut.resize((400, 400), Image.Resampling.BICUBIC).resize((700, 700), Image.Resampling.BICUBIC)
    for place in range(4):
        scene.paste(head.crop((180, 0, 430, 340)), (20 + 250 * place, 10))
    found = sorted(face.box[0] for face in detector(scene))
    assert np.diff(found) == pytest.approx(np.full(3, 250), abs=3)


def test_options_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(OptionError, match="centerface takes no model"):
        load_detector("centerface", tmp_path)
    with pytest.raises(OptionError, match="choose centerface or yunet"):
        load_detector("retina")


@pytest.mark.parametrize(("side", "period"), [(1536, 9), (1536, 14), (768, 6)])
def test_a_face_is_found_behind_the_dots_of_a_coarse_print(detector, astronaut, side, period):
    face = np.asarray(astronaut.resize((side, side), Image.Resampling.BICUBIC).convert("L"))
    y, x = np.mgrid[:side, :side] * 2 * np.pi / period
    dots = face > 255 * (0.5 + np.cos((x + y) / 2**0.5) / 4 + np.cos((x - y) / 2**0.5) / 4)
    (found,) = detector(Image.fromarray(dots).convert("RGB"))
    left, top, right, bottom = (value * 512 / side for value in found.box)
    assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx((225, 118), abs=8)


def test_a_face_that_fills_a_coarse_print_is_found(detector, astronaut):
    near = astronaut.crop((150, 45, 300, 195)).resize((300, 300), Image.Resampling.BICUBIC).convert("L")
    y, x = np.mgrid[:300, :300] * 2 * np.pi / 9
    dots = np.asarray(near) > 255 * (0.5 + np.cos((x + y) / 2**0.5) / 4 + np.cos((x - y) / 2**0.5) / 4)
    (found,) = detector(Image.fromarray(dots).convert("RGB"))
    (plain,) = detector(near.convert("RGB"))
    assert found.box == pytest.approx(plain.box, abs=12)
