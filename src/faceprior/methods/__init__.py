"""Restoration methods: one file each, all of them plug-ins of the one sampling loop."""

from __future__ import annotations

from faceprior.methods.dpi import DPI, DPIOptions
from faceprior.methods.presets import DEFAULT_PRESET, PRESETS, Preset, SamplingOptions, find_preset

__all__ = ["DEFAULT_PRESET", "DPI", "PRESETS", "DPIOptions", "Preset", "SamplingOptions", "find_preset"]
