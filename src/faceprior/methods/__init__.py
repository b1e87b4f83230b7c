"""Restoration methods: one file each, all of them plug-ins of the one sampling loop."""

from __future__ import annotations

from faceprior.methods.dpi import DPI, DPIOptions
from faceprior.methods.measured import Enlarged, Measured
from faceprior.methods.method import Method, NoOptions, SamplingOptions
from faceprior.methods.presets import DEFAULT_PRESET, PRESETS, Preset, find_preset
from faceprior.methods.registry import all_methods, find_method, method_names

__all__ = [
    "DEFAULT_PRESET",
    "DPI",
    "PRESETS",
    "DPIOptions",
    "Enlarged",
    "Measured",
    "Method",
    "NoOptions",
    "Preset",
    "SamplingOptions",
    "all_methods",
    "find_method",
    "find_preset",
    "method_names",
]
