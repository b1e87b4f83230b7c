"""Which device and number format to compute on."""

from __future__ import annotations

import torch

from faceprior.errors import DeviceError

_FULL = ("out of memory", "can't allocate memory", "not enough memory")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of that name; "auto" takes CUDA, else MPS, else the CPU.

    Raises:
        DeviceError: it does not exist on this machine, or the name is unknown.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, exists in available.items() if exists)
    kind = name.split(":")[0]
    if kind not in available:
        raise DeviceError(f"device {name!r} is not known; choose auto, cpu, cuda or mps")
    if not available[kind]:
        raise DeviceError(f"device {name} was asked for, but torch finds none on this machine; use --device cpu")
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the number format of that name; "auto" takes bfloat16 where the device computes it in hardware.

    Raises:
        DeviceError: the name is unknown.
    """
    if name != "auto":
        if name not in _DTYPES:
            raise DeviceError(f"dtype {name!r} is not known; choose auto, {', '.join(_DTYPES)}")
        return _DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and _cpu_has_bfloat16():
        return torch.bfloat16
    return torch.float32


class OutOfMemoryError(DeviceError):
    """Not even one face fits into a device's memory."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(
            f"one face does not fit into the memory of {device}; close other programs, or choose another --device or"
            " --dtype"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device's memory is full, whichever device it is."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _FULL)


def _cpu_has_bfloat16() -> bool:
    # torch has no public test yet; where the private ones are gone, float32 is always right
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, test, lambda: False)() for test in tests)
