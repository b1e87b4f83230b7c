"""Named sets of options: the two published ones, and our own default."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from faceprior.errors import OptionError
from faceprior.methods.dpi import DPIOptions
from faceprior.sampling.solvers import SolverName

DEFAULT_PRESET = "default"


@dataclass(frozen=True)
class SamplingOptions:
    """How the reverse diffusion runs, whatever the method.

    Attributes:
        solver: "ddim" or "ddpm" (ancestral).
        steps: number of network evaluations of the prior, 1 to start · T.
        start: noise level at which the sampler starts, as a fraction of T, above 0 and at most 1. 1 is pure
            noise; below it the noised bicubic face is the start.
        eta: η of DDIM, share of ancestral noise, 0 to 1.
    """

    solver: SolverName = "ddim"
    steps: int = 20
    start: float = 1.0
    eta: float = 0.0


@dataclass(frozen=True)
class Preset:
    """Everything that decides a result besides the weights, the input and the seed."""

    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    dpi: DPIOptions = field(default_factory=DPIOptions)

    def with_options(self, **options: Any) -> Preset:
        """Return a copy with the options that are not None replaced, by their names in the two groups.

        Raises:
            OptionError: a name is unknown or a value out of its range.
        """
        given = {name: value for name, value in options.items() if value is not None}
        groups = {}
        for group in fields(self):
            current = getattr(self, group.name)
            names = {f.name for f in fields(current)}
            groups[group.name] = replace(current, **{n: v for n, v in given.items() if n in names})
            given = {n: v for n, v in given.items() if n not in names}
        if given:
            raise OptionError(f"unknown options {', '.join(sorted(given))}")
        return Preset(**groups)

    def as_dict(self) -> dict[str, Any]:
        """All options, flat, for metadata."""
        return {**asdict(self.sampling), **asdict(self.dpi)}


PRESETS = {
    DEFAULT_PRESET: Preset(
        SamplingOptions(solver="ddim", steps=10, start=0.5),
        DPIOptions(tau=0.1, late_weight=1.0, edge_exponent=1.4, stride=2, placement="sampled"),
    ),
    "paper-ddim": Preset(
        SamplingOptions(solver="ddim", steps=20),
        DPIOptions(tau=0.4, late_weight=2 / 3, edge_exponent=1.4, stride=2, placement="resized"),
    ),
    "paper-ddpm": Preset(
        SamplingOptions(solver="ddpm", steps=1000),
        DPIOptions(tau=0.3, late_weight=4 / 3, edge_exponent=1.2, stride=2, placement="resized"),
    ),
}


def find_preset(name: str) -> Preset:
    """Return a preset by name; raises OptionError for an unknown one."""
    if name not in PRESETS:
        raise OptionError(f"preset {name!r} is not known; choose {', '.join(PRESETS)}")
    return PRESETS[name]
