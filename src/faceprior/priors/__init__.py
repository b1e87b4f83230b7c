"""Priors: unconditional face diffusion models, and how they are loaded."""

from __future__ import annotations

from faceprior.priors.adapter import Estimate, Prior
from faceprior.priors.card import ModelCard
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
