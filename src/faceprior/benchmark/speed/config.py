"""What is measured: prior × dtype × batch × steps × method × device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from itertools import product
from typing import Any, Literal, get_args

from faceprior.benchmark.config import read_method
from faceprior.devices import DeviceName, DtypeName
from faceprior.errors import OptionError
from faceprior.methods import DEFAULT_PRESET, Preset

RivalName = Literal["deepinv"]


@dataclass(frozen=True)
class Grid:
    """Everything × everything.

    Attributes:
        priors: see `faceprior.benchmark.speed.subjects.load_subject`; "" is the embedded one.
        correctors: "auto" and "none", or names, folders and hub ids.
        devices: "auto", "cpu", "cuda", "mps".
        dtypes: "auto", "float32", "bfloat16", "float16".
        methods: names of methods or presets, with options as `faceprior benchmark --method` takes them.
        steps: numbers of steps; 0 leaves it to the method.
        batch_sizes: faces that are restored together.

    Raises:
        OptionError: a list is empty, names something twice, or holds what does not exist.
    """

    priors: list[str] = field(default_factory=lambda: [""])
    correctors: list[str] = field(default_factory=lambda: ["auto"])
    devices: list[str] = field(default_factory=lambda: ["auto"])
    dtypes: list[str] = field(default_factory=lambda: ["auto"])
    methods: list[Any] = field(default_factory=lambda: [DEFAULT_PRESET])
    steps: list[int] = field(default_factory=lambda: [0])
    batch_sizes: list[int] = field(default_factory=lambda: [1])

    def __post_init__(self) -> None:
        for own in fields(self):
            values = getattr(self, own.name)
            if not isinstance(values, list) or not values or len(set(map(str, values))) < len(values):
                raise OptionError(f"{own.name} is {values!r}; it must be a list of at least one, each once")
        for name, known in (("devices", get_args(DeviceName)), ("dtypes", get_args(DtypeName))):
            if unknown := [value for value in getattr(self, name) if value not in known]:
                raise OptionError(f"{name} has {unknown[0]!r}; choose {', '.join(known)}")
        for name, least in (("steps", 0), ("batch_sizes", 1)):
            if any(not isinstance(value, int) or value < least for value in getattr(self, name)):
                raise OptionError(f"{name} is {getattr(self, name)}; whole numbers of at least {least}")
        list(self.cases())

    def cases(self) -> Iterator[Case]:
        """Every combination; those of one prior, device and dtype follow each other."""
        axes = (self.priors, self.correctors, self.devices, self.dtypes, self.methods, self.steps, self.batch_sizes)
        for prior, corrector, device, dtype, method, steps, batch_size in product(*axes):
            label, preset = read_method(method)
            if steps:
                preset = preset.with_options(steps=steps)
            yield Case(Subject(prior, corrector, device, dtype), label, preset, batch_size)


@dataclass(frozen=True)
class Subject:
    """Networks on a device in a number format; the names are `load_subject`'s."""

    prior: str
    corrector: str
    device: str
    dtype: str


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        subject: the networks.
        method: label of the method.
        preset: the method and all its options.
        batch_size: faces that are restored together.
    """

    subject: Subject
    method: str
    preset: Preset
    batch_size: int


@dataclass(frozen=True)
class SpeedConfig:
    """Options of `faceprior benchmark speed`.

    Attributes:
        grids: mappings of `Grid`'s attributes; what one leaves out has its default.
        runs: measurements of each case, of which the median counts.
        threads: of torch; 0 leaves them as they are.
        scale: R/n of the inputs.
        whole_batches: networks see whole batches on a CPU too: faster, but the last bits depend on the batch.
        start_up: also measure what a cold start costs.
        profile: also say which operations each case spends its time on.
        against: "deepinv" to compare its DPS, DDRM and DiffPIR on the networks of each grid; "" for none.
        rival_steps: evaluations of the prior in that comparison.

    Raises:
        OptionError: a value is out of its range.
    """

    grids: list[Any] = field(default_factory=lambda: [{}])
    runs: int = 5
    threads: int = 0
    scale: float = 8.0
    whole_batches: bool = False
    start_up: bool = True
    profile: bool = False
    against: str = ""
    rival_steps: int = 20

    def __post_init__(self) -> None:
        for name, least in (("runs", 1), ("threads", 0), ("rival_steps", 2)):
            if getattr(self, name) < least:
                raise OptionError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.against not in ("", *get_args(RivalName)):
            raise OptionError(f"against is {self.against!r}; choose {', '.join(get_args(RivalName))}")
        self.chosen_grids()

    def chosen_grids(self) -> list[Grid]:
        """Return the grids; raises OptionError if one has an attribute or value that does not exist."""
        known = {own.name for own in fields(Grid)}
        for grid in self.grids:
            if not isinstance(grid, Mapping):
                raise OptionError(f"grid {grid!r}: is not a mapping of {', '.join(sorted(known))}")
            if unknown := sorted(str(name) for name in set(grid) - known):
                raise OptionError(f"grid has {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        return [Grid(**grid) for grid in self.grids]
