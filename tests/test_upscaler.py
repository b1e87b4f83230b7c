import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from faceprior.errors import FacePriorError, ImageError, OptionError, WeightsError
from faceprior.faces.paste import enlarge
from faceprior.photographs import RestoreOptions
from faceprior.photographs.upscaler import Upscaler, load_upscaler


def blurred_repeat(tensor):
    """Repeats pixels, then blurs over seven: what a tile shows depends on its neighbours."""
    large = tensor.repeat_interleave(2, -1).repeat_interleave(2, -2)
    return F.avg_pool2d(F.pad(large, (3, 3, 3, 3), mode="replicate"), 7, stride=1)


@pytest.fixture
def upscaler():
    return Upscaler("net.safetensors", "0" * 64, 2, blurred_repeat)


def picture(height, width, channels, dtype, seed=0):
    top = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, top, (height, width, channels), dtype=dtype, endpoint=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_tiles_leave_no_seams(upscaler, channels, dtype):
    photo = picture(300, 270, channels, dtype)  # two tiles each way
    peak = np.iinfo(dtype).max
    tensor = torch.from_numpy(photo.astype(np.float32) / peak).permute(2, 0, 1)[None]
    whole = (blurred_repeat(tensor)[0] * peak).permute(1, 2, 0).numpy()
    large = upscaler(photo, 2)
    assert (large.shape, large.dtype) == ((600, 540, channels), dtype)
    assert np.abs(large - whole).max() <= 0.5 + 1e-6 * peak


def test_from_its_own_scale_lanczos_goes_to_the_one_that_is_asked_for(upscaler):
    photo = picture(40, 30, 3, np.uint8)
    assert upscaler(photo, 1) is photo
    assert np.array_equal(upscaler(photo, 4), enlarge(upscaler(photo, 2), 2))


def test_a_photograph_too_large_is_refused_before_the_network_sees_it(upscaler):
    huge = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (20_000, 20_000, 3))
    with pytest.raises(ImageError, match="more than 400 million"):
        upscaler(huge, 2)


def test_only_safetensors_are_read(tmp_path):
    with pytest.raises(OptionError, match=r"net\.pth: .* convert it"):
        load_upscaler(tmp_path / "net.pth")


def test_without_spandrel_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(FacePriorError, match=r"pip install spandrel"):
        load_upscaler(tmp_path / "net.safetensors")


def test_an_upscaler_without_enlargement_contradicts_itself(tmp_path):
    with pytest.raises(OptionError, match="--upscale auto, 2 or 4"):
        RestoreOptions(upscaler=tmp_path / "net.safetensors")


@pytest.fixture
def spandrel():
    return pytest.importorskip("spandrel", exc_type=ImportError, reason="spandrel is not installed")


def test_a_network_of_spandrels_is_loaded_and_enlarges(spandrel, tmp_path):
    from safetensors.torch import save_file
    from spandrel.architectures.Compact import Compact

    torch.manual_seed(0)
    network = Compact(num_feat=8, num_conv=2, upscale=2)
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    upscaler = load_upscaler(tmp_path / "net.safetensors")
    photo = picture(20, 30, 3, np.uint8)
    tensor = torch.from_numpy(photo / np.float32(255)).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = (network(tensor)[0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    assert upscaler.scale == 2
    assert np.array_equal(upscaler(photo, 2), expected)


def test_a_file_that_is_no_network_is_refused(spandrel, tmp_path):
    (tmp_path / "net.safetensors").write_bytes(b"Dear all")
    for name, words in (("net", "no network that spandrel knows"), ("gone", "cannot be read")):
        with pytest.raises(WeightsError, match=words):
            load_upscaler(tmp_path / f"{name}.safetensors")
