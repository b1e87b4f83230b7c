"""What a visitor sets, and what it stands for in the terms of the method."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import NoneType
from typing import Any, Literal, get_args, get_type_hints

from faceprior.errors import OptionError
from faceprior.methods import DEFAULT_PRESET, find_method, find_preset
from faceprior.photographs import RestoreOptions

SCALES = ("auto", "4", "8", "16")
STRIDES = (1, 2, 4, 8)

_UPSCALES: dict[str, Literal[1, 2, 4, "auto"]] = {"auto": "auto", "1": 1, "2": 2, "4": 4}
_OWN = ("steps", "stride", "edge_exponent", "eta")
_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", NoneType: "nothing"}


@dataclass(frozen=True)
class Controls:
    """All that a visitor sets.

    Attributes:
        preset: name of a preset, or of the method whose defaults it stands for.
        strength: share of the restored face in the photograph, 0 to 1 (blend).
        scale: R/n of the faces, "auto", "4", "8" or "16".
        upscale: enlargement of the whole photograph: "auto" (as much as its faces need), "1", "2" or "4".
        samples: restorations of each face.
        seed: of the noise.
        steps: noise levels; None is the preset's, as for the following ones.
        stride: k.
        edge_exponent: s.
        eta: η.
        corrector: whether the corrector (CRT) works, where there is one.
        prior: name of the prior; None is the server's first.
        as_jpeg: write a JPEG, whatever the picture's own format.
        with_location: leave in the file where the photograph was taken.

    Raises:
        OptionError: a value is out of its range.
    """

    preset: str = DEFAULT_PRESET
    strength: float = 1.0
    scale: str = "auto"
    upscale: str = "auto"
    samples: int = 1
    seed: int = 0
    steps: int | None = None
    stride: int | None = None
    edge_exponent: float | None = None
    eta: float | None = None
    corrector: bool = True
    prior: str | None = None
    as_jpeg: bool = False
    with_location: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise OptionError(f"strength is {self.strength}; it must lie in 0 to 1")
        for name, choices in (("scale", SCALES), ("upscale", tuple(_UPSCALES))):
            if getattr(self, name) not in choices:
                raise OptionError(f"{name} is {getattr(self, name)!r}; choose {', '.join(choices)}")
        if self.samples < 1:
            raise OptionError(f"samples is {self.samples}; it must be at least 1")
        if not 0 <= self.seed < 2**63:
            raise OptionError(f"seed is {self.seed}; it must be a whole number from 0 to 2^63 − 1")
        _ = self.recipe

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Controls:
        """Make controls of JSON, which may write 1.0 for 1 but must not write "1".

        Raises:
            OptionError: a value is of another kind, or out of its range.
        """
        typed = dict(values)
        for name, kind in get_type_hints(cls).items():
            if name not in values:
                continue
            value, kinds = values[name], get_args(kind) or (kind,)
            if int in kinds and isinstance(value, float) and value.is_integer():
                typed[name] = int(value)
            elif float in kinds and type(value) is int:
                typed[name] = float(value)
            if type(typed[name]) not in kinds:
                raise OptionError(f"{name} is {value!r}; it must be {' or '.join(_NAMES[each] for each in kinds)}")
        return cls(**typed)

    @property
    def recipe(self) -> RestoreOptions:
        """The same for the pipeline, without what does not act; raises OptionError where one is out of range."""
        acting = acting_controls(self.preset)
        chosen = {name: getattr(self, name) for name in _OWN if name in acting}
        return RestoreOptions(
            scale="auto" if self.scale == "auto" else float(self.scale),
            preset=find_preset(self.preset).with_options(**chosen),
            preset_name=self.preset,
            samples=self.samples,
            seed=self.seed,
            blend=self.strength,
            upscale=_UPSCALES[self.upscale],
            ending=".jpg" if self.as_jpeg else None,
            with_location=self.with_location,
        )

    def command(self, photo: str, options: RestoreOptions, first_prior: str, default_prior: str) -> str:
        """Return the command line that makes the same files.

        Args:
            photo: name of the photograph's file.
            options: `recipe`, with the kind of picture and the chosen faces.
            first_prior: the prior that the server takes by itself.
            default_prior: the prior that `faceprior restore` takes by itself.
        """
        words = ["faceprior", "restore", photo if not photo.startswith("-") else f"./{photo}", "--output", "restored"]
        words += [f"--{options.kind}", *(word for number in options.chosen for word in ("--face", str(number)))]
        if options.kind == "photo":
            words += ["--blend", _shown(options.blend)] if options.blend != 1 else []
            words += ["--upscale", str(options.upscale)] if options.upscale != 1 else []
            words += ["--no-location"] if not options.with_location else []
        words += ["--jpeg"] if self.as_jpeg else []
        words += ["--scale", self.scale] if self.scale != "auto" else []
        if self.preset != DEFAULT_PRESET:
            words += ["--method", self.preset]
        defaults = find_preset(self.preset).as_dict()
        for name, value in options.preset.as_dict().items():
            if value != defaults[name]:
                words += ["--option", f"{name}={_shown(value)}"]
        words += ["--samples", str(self.samples)] if self.samples != 1 else []
        words += ["--seed", str(self.seed)] if self.seed else []
        prior = self.prior if self.prior is not None else first_prior
        words += ["--prior", prior] if prior != default_prior else []
        if not self.corrector and "corrector" in acting_controls(self.preset):
            words += ["--corrector", "none"]
        return shlex.join(words)


def acting_controls(preset: str) -> frozenset[str]:
    """Return the names of the controls that change a result of this preset; the others are greyed.

    Raises:
        OptionError: there is no such preset.
    """
    chosen = find_preset(preset)
    options = chosen.as_dict()
    acting = {field.name for field in fields(Controls)} - {*_OWN, "samples", "seed", "corrector"}
    if chosen.sampling is not None:
        acting |= {"steps", "seed", "samples"}
        if chosen.sampling.solver == "ddim" and "eta" in options:
            acting.add("eta")
    if "stride" in options:
        acting.add("stride")
    if options.get("tau", 0) > 0:  # else there is no RACM for it to act on
        acting.add("edge_exponent")
    method = find_method(chosen.method)
    if method.uses_corrector and method.uses_prior:  # without both there is nothing left
        acting.add("corrector")
    return frozenset(acting)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
