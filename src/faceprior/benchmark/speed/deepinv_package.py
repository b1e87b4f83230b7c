"""Importing deepinv, which wants torchvision, where torch is a CPU build."""

from __future__ import annotations

import sys
from typing import Any

import torch

from faceprior.errors import FacePriorError


def import_deepinv() -> Any:
    """Import deepinv.

    It imports torchvision, whose wheels on the package index fit CUDA builds of torch only. Beside a CPU build they
    cannot be imported, and diffusers, which imports torchvision where it finds it, cannot either. All that is missing
    are two operators that torchvision describes to torch and that deepinv's samplers never call: their names are
    declared here. Call this before anything imports diffusers.

    Raises:
        FacePriorError: it is not installed, or cannot be imported.
    """
    try:
        try:
            import torchvision  # noqa: F401
        except RuntimeError as error:
            if "operator torchvision::" not in str(error):
                raise
            _declare_torchvision_operators()
        import deepinv
    except ImportError as error:
        raise FacePriorError(
            f"--against deepinv needs deepinv ({error}); install it with: pip install deepinv"
        ) from error
    except RuntimeError as error:
        raise FacePriorError(f"deepinv cannot be imported beside torch {torch.__version__} ({error})") from error
    return deepinv


_TORCHVISION = torch.library.Library("torchvision", "FRAGMENT")  # what is declared lives as long as this object


def _declare_torchvision_operators() -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[module]  # half-imported
    for name in ("nms", "qnms"):
        _TORCHVISION.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
