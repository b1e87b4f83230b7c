import pytest
import torch

from faceprior import devices
from faceprior.devices import choose_device, choose_dtype
from faceprior.errors import DeviceError


@pytest.fixture
def machine(monkeypatch):
    def has(*, cuda=False, mps=False, cuda_bfloat16=False, cpu_bfloat16=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: cuda_bfloat16)
        monkeypatch.setattr(devices, "_cpu_has_bfloat16", lambda: cpu_bfloat16)

    return has


@pytest.mark.parametrize(
    ("has", "name", "expected"),
    [
        ({}, "auto", "cpu"),
        ({"cuda": True, "mps": True}, "auto", "cuda"),
        ({"mps": True}, "auto", "mps"),
        ({"cuda": True}, "cpu", "cpu"),
        ({"cuda": True}, "cuda:0", "cuda:0"),
    ],
)
def test_auto_takes_the_fastest_device_and_a_name_takes_that_one(machine, has, name, expected):
    machine(**has)
    assert choose_device(name) == torch.device(expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda", "cuda was asked for.*--device cpu"),
        ("mps", "mps was asked for.*--device cpu"),
        ("cuda:1", "--device cpu"),
        ("tpu", "'tpu' is not known"),
    ],
)
def test_a_device_that_does_not_exist_is_refused_with_the_remedy(machine, name, message):
    machine()
    with pytest.raises(DeviceError, match=message):
        choose_device(name)


@pytest.mark.parametrize(
    ("has", "name", "device", "expected"),
    [
        ({}, "auto", "cpu", torch.float32),
        ({"cpu_bfloat16": True}, "auto", "cpu", torch.bfloat16),
        ({"cuda_bfloat16": True}, "auto", "cuda", torch.bfloat16),
        ({}, "auto", "cuda", torch.float16),
        ({"cpu_bfloat16": True}, "auto", "mps", torch.float32),
        ({"cpu_bfloat16": True}, "float32", "cpu", torch.float32),
        ({}, "bfloat16", "cpu", torch.bfloat16),
        ({}, "float16", "cuda", torch.float16),
    ],
)
def test_auto_takes_a_half_format_only_where_the_hardware_has_it(machine, has, name, device, expected):
    machine(**has)
    assert choose_dtype(name, torch.device(device)) is expected


def test_an_unknown_number_format_is_refused():
    with pytest.raises(DeviceError, match="'int8' is not known; choose auto, float32"):
        choose_dtype("int8", torch.device("cpu"))


def test_a_torch_without_the_private_tests_computes_in_float32(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert choose_dtype("auto", torch.device("cpu")) is torch.float32
