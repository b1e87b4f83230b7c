"""Priors: unconditional face diffusion models, and how they are loaded."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from faceprior.priors.card import ModelCard

if TYPE_CHECKING:
    from faceprior.priors.adapter import Prior
    from faceprior.priors.store import DEFAULT_PRIOR, load_prior, save_prior

__all__ = ["DEFAULT_PRIOR", "ModelCard", "Prior", "load_prior", "save_prior"]

# what needs torch is resolved on first use: cards and options are read without it
_HOMES = {"DEFAULT_PRIOR": "store", "Prior": "adapter", "load_prior": "store", "save_prior": "store"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'faceprior.priors' has no attribute {name!r}")
    return getattr(import_module(f"faceprior.priors.{_HOMES[name]}"), name)
