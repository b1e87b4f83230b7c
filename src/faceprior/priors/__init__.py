"""Priors: unconditional face diffusion models, and how they are loaded."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from faceprior.priors.card import ModelCard

if TYPE_CHECKING:
    from faceprior.priors.adapter import Estimate, Prior
    from faceprior.priors.noise_schedule import NoiseSchedule
    from faceprior.priors.store import DEFAULT_PRIOR, embedded_cards, load_prior, save_prior

__all__ = [
    "DEFAULT_PRIOR",
    "Estimate",
    "ModelCard",
    "NoiseSchedule",
    "Prior",
    "embedded_cards",
    "load_prior",
    "save_prior",
]

# what needs torch is resolved on first use: cards and options are read without it
_HOMES = {
    "DEFAULT_PRIOR": "store",
    "Estimate": "adapter",
    "NoiseSchedule": "noise_schedule",
    "Prior": "adapter",
    "embedded_cards": "store",
    "load_prior": "store",
    "save_prior": "store",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'faceprior.priors' has no attribute {name!r}")
    return getattr(import_module(f"faceprior.priors.{_HOMES[name]}"), name)
