import sys

import numpy as np
import pytest
from PIL import Image

from faceprior.errors import FacePriorError, WeightsError
from faceprior.faces import load_detector
from tiny_yunet import tiny_yunet


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    pytest.importorskip("cv2")
    path = tmp_path_factory.mktemp("yunet") / "tiny.onnx"
    path.write_bytes(tiny_yunet())
    return path


def test_boxes_and_landmarks_are_in_pixels_from_the_outer_corner(model):
    detector = load_detector("yunet", model)
    pixels = np.zeros((100, 130, 3), np.uint8)
    pixels[40:48, 64:72, 0] = 255  # the model takes red squares for faces, so the channels' order is tried as well
    nothing, (seen,) = detector.look(np.stack([np.zeros_like(pixels), pixels]))
    assert nothing == []
    assert (seen.box, seen.score) == ((52, 28, 84, 60), 1)
    assert seen.landmarks == [(60, 40), (76, 40), (68, 48), (62, 56), (74, 56)]


def test_nothing_is_found_in_a_dark_picture(model):
    assert load_detector("yunet", model)(Image.new("RGB", (120, 90))) == []


def test_a_file_that_is_no_model_is_refused(tmp_path):
    pytest.importorskip("cv2")
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(WeightsError, match=r"model\.onnx: OpenCV cannot read it"):
        load_detector("yunet", tmp_path / "model.onnx")


def test_a_model_that_does_not_exist_is_named(tmp_path):
    pytest.importorskip("cv2")
    with pytest.raises(WeightsError, match=r"none\.onnx: is not a file; download"):
        load_detector("yunet", tmp_path / "none.onnx")


def test_a_downloaded_model_must_be_the_published_one(tmp_path, monkeypatch):
    pytest.importorskip("cv2")
    (tmp_path / "model.onnx").write_bytes(tiny_yunet())
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(tmp_path / "model.onnx"))
    with pytest.raises(WeightsError, match="is not the published"):
        load_detector("yunet")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(FacePriorError, match=r"pip install 'faceprior\[research\]'"):
        load_detector("yunet")
