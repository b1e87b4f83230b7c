"""Restoration methods: one file each, all of them plug-ins of the one sampling loop."""

from __future__ import annotations

from faceprior.methods.dpi import DPI, DPIOptions
from faceprior.methods.presets import DEFAULT_PRESET, PRESETS, Preset, SamplingOptions, find_preset
from faceprior.methods.unconditional import Unconditional

__all__ = [
    "DEFAULT_PRESET",
    "DPI",
    "PRESETS",
    "DPIOptions",
    "Preset",
    "SamplingOptions",
    "Unconditional",
    "find_preset",
]
