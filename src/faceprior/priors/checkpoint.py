"""Other people's checkpoints, read without running any code in them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from faceprior.errors import WeightsError


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read a network's tensors onto the CPU.

    Args:
        path: a state dict, plain or in one wrapper ("state_dict", "model", "ema"), as `.safetensors` or as
            `torch.save` writes it; the "module." of torch's DataParallel is taken off.

    Raises:
        WeightsError: the file cannot be read, is not safe to load, or holds no state dict or several.
    """
    return _unwrapped(path, _loaded(path))


def key_faults(state: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[str]]:
    """Name the keys of a state dict that are missing, unexpected or of other shapes than a network's."""
    return {
        "missing keys": [key for key in shapes if key not in state],
        "unexpected keys": [key for key in state if key not in shapes],
        "misshapen keys": [
            f"{key} {tuple(state[key].shape)} instead of {shape}"
            for key, shape in shapes.items()
            if key in state and tuple(state[key].shape) != shape
        ],
    }


def named(faults: Mapping[str, list[str]]) -> str:
    """Say what is wrong in a line; nothing if nothing is."""
    return "; ".join(
        f"{fault}: {', '.join(map(str, keys[:5]))}{f' and {len(keys) - 5} more' * (len(keys) > 5)}"
        for fault, keys in faults.items()
        if keys
    )


def _loaded(path: Path) -> Any:
    if not path.is_file():
        raise WeightsError(f"{path}: is not a file; name a checkpoint")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: is no plain checkpoint: it holds Python code or objects beside tensors, or is another kind of"
            " file; nothing in it was run; if you trust it, save its state dict alone, as .safetensors"
        ) from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise WeightsError(
            f"{path}: cannot be read as a checkpoint ({type(error).__name__}): it is damaged, incomplete or another"
            " kind of file; get it again"
        ) from error


def _unwrapped(path: Path, loaded: Any) -> dict[str, torch.Tensor]:
    if isinstance(loaded, Mapping) and not _is_state_dict(loaded):
        wrapped = [name for name, value in loaded.items() if _is_state_dict(value)]
        if len(wrapped) > 1:
            raise WeightsError(
                f"{path}: holds several networks ({', '.join(map(str, wrapped))}); save the one to use alone"
            )
        loaded = loaded[wrapped[0]] if wrapped else None
    if not _is_state_dict(loaded):
        raise WeightsError(f"{path}: holds no state dict (names and tensors); save the network's state dict alone")
    prefix = "module."  # of torch's DataParallel
    if all(key.startswith(prefix) for key in loaded):
        return {key.removeprefix(prefix): tensor for key, tensor in loaded.items()}
    return dict(loaded)


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(key, str) and isinstance(tensor, torch.Tensor) for key, tensor in value.items())
    )
