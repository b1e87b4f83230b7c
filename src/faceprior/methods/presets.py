"""Named sets of options: each method's own, and for DPI the two published ones and ours."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, get_type_hints

from faceprior.errors import OptionError
from faceprior.methods import dpi
from faceprior.methods.dpi import DPIOptions
from faceprior.methods.method import Method, SamplingOptions
from faceprior.methods.registry import find_method, method_names

DEFAULT_PRESET = "default"


@dataclass(frozen=True)
class Preset:
    """Everything that decides a result besides the weights, the input and the seed.

    Attributes:
        method: name of the method.
        sampling: how the reverse diffusion runs; None for a method without a prior.
        options: the method's own options.

    Raises:
        OptionError: the method is unknown, or the options are not its own.
    """

    method: str
    sampling: SamplingOptions | None
    options: Any

    def __post_init__(self) -> None:
        method = find_method(self.method)
        if type(self.options) is not type(method.options):
            wanted, given = type(method.options).__name__, type(self.options).__name__
            raise OptionError(f"{self.method} takes {wanted}, not {given}")
        if (self.sampling is None) is method.uses_prior:
            raise OptionError(f"{self.method} {'needs' if method.uses_prior else 'takes no'} SamplingOptions")

    @classmethod
    def of(cls, method: Method) -> Preset:
        """Return a method's default options."""
        return cls(method.name, method.sampling, method.options)

    def with_options(self, **options: Any) -> Preset:
        """Return a copy with the options that are not None replaced, by their names in the two groups.

        A name that both groups have is the method's own.

        Raises:
            OptionError: a name is unknown or a value of the wrong kind or out of its range.
        """
        given = {name: value for name, value in options.items() if value is not None}
        known = self.as_dict()
        if unknown := sorted(given.keys() - known.keys()):
            names = ", ".join(known) or "none"
            raise OptionError(f"{self.method} has no option {', '.join(unknown)}; it has {names}")
        if not given:
            return self
        from faceprior.settings import as_kind  # with pydantic, a tenth of a cold start

        kinds = self.types()
        given = {name: as_kind(kinds[name], value, name) for name, value in given.items()}
        own = {field.name for field in fields(self.options)}
        changed = replace(self.options, **{name: value for name, value in given.items() if name in own})
        sampling = self.sampling
        if sampling is not None:
            sampling = replace(sampling, **{name: value for name, value in given.items() if name not in own})
        return Preset(self.method, sampling, changed)

    def as_dict(self) -> dict[str, Any]:
        """All options, flat, for metadata."""
        return {**(asdict(self.sampling) if self.sampling is not None else {}), **asdict(self.options)}

    def types(self) -> dict[str, Any]:
        """Types of all options, flat, by name, as `as_dict` has their values."""
        groups = [group for group in (self.sampling, self.options) if group is not None]
        return {name: kind for group in groups for name, kind in get_type_hints(type(group)).items()}


PRESETS = {
    DEFAULT_PRESET: Preset.of(dpi.METHOD),
    "faithful": Preset(
        "dpi",
        SamplingOptions(steps=4, start=0.15, end=0.04),
        replace(dpi.METHOD.options, detail=0.0, texture=0.0),
    ),
    "detailed": Preset(
        "dpi",
        SamplingOptions(steps=10, start=0.5, end=0.02, shift=0.15),
        replace(dpi.METHOD.options, tau=0.1, detail_above=8),
    ),
    "fast": Preset("dpi", SamplingOptions(steps=2, start=0.2, end=0.03, shift=0.15), dpi.METHOD.options),
    "paper-ddim": Preset(
        "dpi",
        SamplingOptions(solver="ddim", steps=20),
        DPIOptions(tau=0.35, late_weight=2 / 3, edge_exponent=1.4, stride=2, placement="resized"),
    ),
    "paper-ddpm": Preset(
        "dpi",
        SamplingOptions(solver="ddpm", steps=1000),
        DPIOptions(tau=0.3, late_weight=4 / 3, edge_exponent=1.2, stride=2, placement="resized"),
    ),
}
"""Presets that are not simply a method's default."""


def find_preset(name: str) -> Preset:
    """Return a preset by its own name or by that of the method whose default it is.

    Raises:
        OptionError: there is none of that name, or its method cannot be loaded.
    """
    if name in PRESETS:
        return PRESETS[name]
    if name not in method_names():
        known = ", ".join([*PRESETS, *method_names()])
        raise OptionError(f"{name!r} is neither a preset nor a method; choose one of {known}")
    return Preset.of(find_method(name))
