"""What a benchmark runs: faces × methods × scales × degradations × seeds, from a YAML file and from flags."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal, get_args

import yaml

from faceprior.degradations import check_degradation
from faceprior.errors import OptionError
from faceprior.methods import Preset, find_preset
from faceprior.pipeline.conversions import MAX_SCALE, MIN_SCALE
from faceprior.training.config import like

DatasetName = Literal["celeba", "ffhq", "lfw", "webphoto", "wider"]

NO_DEGRADATION = "none"
"""Of faces that are bad already: they are the input, and nothing is known of the truth."""

DEFAULT_METHODS = ("bicubic", "dpi")


@dataclass(frozen=True)
class BenchmarkConfig:
    """Options of `faceprior benchmark`.

    Attributes:
        title: of the report.
        data: folder of faces, packed or not, or the copy of the dataset; several folders are one set.
        dataset: how the folder is laid out: "celeba", "ffhq", "lfw", "webphoto" or "wider", as their authors publish
            them; "" for a packed set or a plain folder of aligned faces.
        faces: number of faces, spread evenly over the set; 0 takes all.
        subset: "extreme-pose", or NAME=VALUE of a label; "" takes all faces.
        methods: names of methods or presets, or mappings with `name`, options of the method, and a `label` to
            call it by.
        scales: R/n of the inputs.
        degradations: names (`faceprior.degradations.make_input`), or "none" for faces that are bad already.
        seeds: of damage and noise.
        samples: restorations of each face with each seed.
        metrics: names (`faceprior.benchmark.metrics`); empty takes all that can be measured.
        baseline: label of the method that the others are compared with; "" is the first.
        reference: folder of faces for FID and KID; "" takes the true faces.
        identity_threshold: cosine similarity from which two embeddings count as one person; 0 is the network's own.
        arcface: checkpoint of an ArcFace IResNet that measures identity; "" is dlib's network.
        prior: see `--prior`; "" is the embedded one.
        corrector: see `--corrector`.
        adm_config: see `--adm-config`; "" is none.
        whole_batches: networks see whole batches on a CPU too: faster, but the last bits depend on the batch.
        batch_size: samples that go through the networks together.
        confidence_draws: draws of the bootstrap.
    """

    title: str = "Benchmark"
    data: list[str] = field(default_factory=list)
    dataset: str = ""
    faces: int = 0
    subset: str = ""
    methods: list[Any] = field(default_factory=lambda: list(DEFAULT_METHODS))
    scales: list[float] = field(default_factory=lambda: [8.0])
    degradations: list[str] = field(default_factory=lambda: ["bicubic"])
    seeds: list[int] = field(default_factory=lambda: [0])
    samples: int = 1
    metrics: list[str] = field(default_factory=list)
    baseline: str = ""
    reference: str = ""
    identity_threshold: float = 0.0
    arcface: str = ""
    prior: str = ""
    corrector: str = "auto"
    adm_config: str = ""
    whole_batches: bool = False
    batch_size: int = 8
    confidence_draws: int = 2000

    def __post_init__(self) -> None:
        self._check_numbers()
        if self.dataset not in ("", *get_args(DatasetName)):
            raise OptionError(f"dataset is {self.dataset!r}; choose {', '.join(get_args(DatasetName))}")
        for degradation in self.degradations:
            if degradation != NO_DEGRADATION:
                check_degradation(str(degradation))
        chosen = self.chosen_methods()
        if self.baseline and self.baseline not in chosen:
            raise OptionError(f"baseline {self.baseline!r} is not among the methods {', '.join(chosen)}")

    def _check_numbers(self) -> None:
        for name, least in (("samples", 1), ("batch_size", 1), ("confidence_draws", 1), ("faces", 0)):
            if getattr(self, name) < least:
                raise OptionError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not -1 <= self.identity_threshold <= 1:
            raise OptionError(f"identity_threshold is {self.identity_threshold}; it must lie in -1 to 1")
        for name in ("methods", "scales", "degradations", "seeds"):
            own = getattr(self, name)
            if not own or len(set(map(str, own))) < len(own):
                raise OptionError(f"{name} is {own}; name at least one, and each once")
        for scale in self.scales:
            if not (isinstance(scale, int | float) and MIN_SCALE <= scale <= MAX_SCALE):
                raise OptionError(f"scale is {scale!r}; choose a number from {MIN_SCALE:g} to {MAX_SCALE:g}")
        for seed in self.seeds:
            if not isinstance(seed, int) or seed < 0:
                raise OptionError(f"seed is {seed!r}; it must be a whole number of at least 0")

    def chosen_methods(self) -> dict[str, Preset]:
        """Return the methods with all their options, by label.

        Raises:
            OptionError: a method or an option is unknown, or two methods have one label or are the same.
        """
        chosen: dict[str, Preset] = {}
        for entry in self.methods:
            label, preset = read_method(entry)
            if label in chosen:
                raise OptionError(f"two methods are called {label}; give one of them another label")
            same = next((other for other, known in chosen.items() if known == preset), None)
            if same is not None:
                raise OptionError(f"{same} and {label} are the same method with the same options; leave one out")
            chosen[label] = preset
        return chosen

    def conditions(self) -> list[Condition]:
        """Every input × seed, in the order of the run."""
        scales = [float(scale) for scale in self.scales]
        return [Condition(*own) for own in product(self.degradations, scales, self.seeds)]


@dataclass(frozen=True)
class Condition:
    """How inputs are made.

    Attributes:
        degradation: its name, or "none".
        scale: R/n.
        seed: of damage and noise.
    """

    degradation: str
    scale: float
    seed: int

    @property
    def has_truth(self) -> bool:
        """Whether the sharp face is known."""
        return self.degradation != NO_DEGRADATION


def read_method(entry: Any) -> tuple[str, Preset]:
    """Return label and options of an entry of `methods`.

    Args:
        entry: "NAME", "NAME,option=value,…" with `label` among the options, or a mapping with `name`.

    Raises:
        OptionError: it is neither, or the method or an option is unknown or of the wrong kind.
    """
    if isinstance(entry, str):
        entry = dict(_assignments(entry))
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise OptionError(f"method {entry!r}: write a name, or a mapping with name and options")
    options = {str(name): value for name, value in entry.items() if name not in ("name", "label")}
    name = entry["name"]
    preset = find_preset(name)
    known = preset.as_dict()
    typed = {
        option: like(known[option], value, f"{name}: {option} is {value!r}") if option in known else value
        for option, value in options.items()
    }
    settings = [f"{option}={value}" for option, value in options.items()]
    return str(entry.get("label", " ".join([name, *settings]))), preset.with_options(**typed)


def _assignments(text: str) -> Iterator[tuple[str, Any]]:
    name, *options = text.split(",")
    yield "name", name.strip()
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise OptionError(f"method {text!r}: write NAME or NAME,option=value")
        try:
            yield key.strip().replace("-", "_"), yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise OptionError(f"method {text!r}: {value!r} is not a value") from error
