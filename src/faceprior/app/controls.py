"""What a visitor sets, and what it stands for in the terms of the method."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from faceprior.errors import OptionError
from faceprior.methods import DEFAULT_PRESET, Preset, find_method, find_preset

SCALES = ("auto", "4", "8", "16")
ENLARGEMENTS = (1, 2, 4)
STRIDES = (1, 2, 4, 8)
MAX_TAU = 0.5
"""τ at the detailed end. Above it the embedded prior draws faces of its own."""

_FLAGS = {
    "steps": "--steps",
    "start": "--start",
    "tau": "--tau",
    "late_weight": "--late-weight",
    "stride": "--stride",
    "edge_exponent": "--edge-exponent",
    "eta": "--eta",
}


@dataclass(frozen=True)
class Controls:
    """All that a visitor sets.

    Attributes:
        detailed: 0 (faithful: the method's default) to 1 (detailed: the photograph holds the early steps and the
            edges alone, and the prior draws the rest). Of DPI only; see `faithful_to_detailed`.
        strength: share of the restored face in the photograph, 0 to 1 (blend).
        scale: R/n of the faces, "auto", "4", "8" or "16".
        enlarge: enlargement of the whole photograph: 1, 2 or 4 (upscale).
        samples: restorations of each face.
        seed: of the noise.
        method: name of the method.
        steps: noise levels; None is the method's default, as for the following ones.
        stride: k.
        edge_exponent: s.
        eta: η.
        corrector: whether the corrector (CRT) works, where there is one.
        prior: name of the prior; None is the server's first.

    Raises:
        OptionError: a value is out of its range.
    """

    detailed: float = 0.0
    strength: float = 1.0
    scale: str = "auto"
    enlarge: int = 1
    samples: int = 1
    seed: int = 0
    method: str = "dpi"
    steps: int | None = None
    stride: int | None = None
    edge_exponent: float | None = None
    eta: float | None = None
    corrector: bool = True
    prior: str | None = None

    def __post_init__(self) -> None:
        for name in ("detailed", "strength"):
            if not 0 <= getattr(self, name) <= 1:
                raise OptionError(f"{name} is {getattr(self, name)}; it must lie in 0 to 1")
        if self.scale not in SCALES:
            raise OptionError(f"scale is {self.scale!r}; choose {', '.join(SCALES)}")
        if self.enlarge not in ENLARGEMENTS:
            raise OptionError(f"enlarge is {self.enlarge}; choose 1, 2 or 4")
        if self.samples < 1:
            raise OptionError(f"samples is {self.samples}; it must be at least 1")
        if not 0 <= self.seed < 2**63:
            raise OptionError(f"seed is {self.seed}; it must be a whole number from 0 to 2^63 − 1")

    @property
    def preset(self) -> Preset:
        """The method with the options that act; raises OptionError where one is out of its range."""
        preset = default_preset(self.method)
        acting = acting_controls(self.method, self.detailed)
        chosen: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("steps", "stride", "edge_exponent", "eta")
            if name in acting and getattr(self, name) is not None
        }
        if self.detailed > 0 and "detailed" in acting:
            chosen |= faithful_to_detailed(self.detailed, preset)
        return preset.with_options(**chosen)

    @property
    def scale_value(self) -> float | Literal["auto"]:
        """The scale as the pipeline takes it."""
        return "auto" if self.scale == "auto" else float(self.scale)

    def command(self, photo: str, faces: Sequence[int], *, aligned: bool, default_prior: str) -> str:
        """Return the command line that makes the same pictures.

        Args:
            photo: name of the photograph's file.
            faces: numbers, from 1, of the chosen faces of a photograph; none for all.
            aligned: whether the picture is an aligned face crop.
            default_prior: the prior that `restore` takes by itself.
        """
        return shlex.join([*self._what(photo, faces, aligned=aligned), *self._how(default_prior)])

    def _what(self, photo: str, faces: Sequence[int], *, aligned: bool) -> list[str]:
        words = ["faceprior", "restore", photo if not photo.startswith("-") else f"./{photo}", "--output", "restored"]
        words += ["--aligned"] if aligned else ["--photo"]
        if not aligned:
            words += [word for number in faces for word in ("--face", str(number))]
            if self.strength != 1:
                words += ["--blend", _shown(self.strength)]
            if self.enlarge != 1:
                words += ["--upscale", str(self.enlarge)]
        return words

    def _how(self, default_prior: str) -> list[str]:
        words = []
        if self.scale != "auto":
            words += ["--scale", self.scale]
        if preset_name(self.method) != DEFAULT_PRESET:
            words += ["--method", self.method]
        defaults = default_preset(self.method).as_dict()
        for name, value in self.preset.as_dict().items():
            if value != defaults[name]:
                words += [_FLAGS[name], _shown(value)]
        if self.samples != 1:
            words += ["--samples", str(self.samples)]
        if self.seed:
            words += ["--seed", str(self.seed)]
        if self.prior is not None and self.prior != default_prior:
            words += ["--prior", self.prior]
        if not self.corrector and find_method(self.method).uses_corrector:
            words += ["--corrector", "none"]
        return words


def preset_name(method: str) -> str:
    """Return the name of the options that a method has before anyone touches them."""
    return DEFAULT_PRESET if method == find_preset(DEFAULT_PRESET).method else method


def default_preset(method: str) -> Preset:
    """Return these options."""
    return find_preset(preset_name(method))


def faithful_to_detailed(detailed: float, preset: Preset) -> dict[str, float]:
    """Return the options that a place between faithful and detailed stands for.

    Below noise level τ·T only edges are held (RACM), with a weight that falls with ω; so the higher τ and the
    lower ω, the more is left to the prior. Above the level at which the sampler starts τ would have no effect, so
    the start follows it. The square root makes equal ways of the slider about equally visible.

    Args:
        detailed: above 0, to 1.
        preset: DPI's options.
    """
    tau = round(MAX_TAU * math.sqrt(detailed), 3)
    start = preset.sampling.start if preset.sampling is not None else 1.0
    return {"tau": tau, "late_weight": round(1 - detailed / 2, 3), "start": max(start, tau)}


def acting_controls(method: str, detailed: float) -> frozenset[str]:
    """Return the names of the controls that change a result of this method; the others are left out or greyed.

    Args:
        method: name of the method.
        detailed: as `Controls.detailed`: at 0 there is no RACM for `edge_exponent` to act on.
    """
    preset, chosen = default_preset(method), find_method(method)
    known = preset.as_dict().keys()
    acting = {"strength", "scale", "enlarge", "method", "prior"}
    if preset.sampling is not None:
        acting |= {"steps", "seed", "samples"}
        if preset.sampling.solver == "ddim" and "eta" in known:
            acting.add("eta")
    if "stride" in known:
        acting.add("stride")
    if {"tau", "late_weight"} <= known:
        acting.add("detailed")
        if detailed > 0:
            acting.add("edge_exponent")
    if chosen.uses_corrector:
        acting.add("corrector")
    return frozenset(acting)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
