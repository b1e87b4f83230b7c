"""What a benchmark runs: faces × methods × scales × degradations × seeds, from a YAML file and from flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from faceprior.benchmark.metrics import METRICS
from faceprior.degradations import check_degradation
from faceprior.errors import OptionError
from faceprior.methods import Preset, find_preset
from faceprior.pipeline.conversions import MAX_SCALE, MIN_SCALE
from faceprior.settings import load_settings, read_assignment

NO_DEGRADATION = "none"
"""Of faces that are bad already: they are the input, and nothing is known of the truth."""

REFERENCES = ("bicubic", "corrector")
"""Methods that every table has: what the others must be worth."""


def _split(value: Any) -> Any:
    """Text with commas, as flags have it, as a list."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


Listed = BeforeValidator(_split)
Scale = Annotated[float, Field(ge=MIN_SCALE, le=MAX_SCALE)]


class BenchmarkConfig(BaseModel):
    """Options of `faceprior benchmark`; lists may also be text with commas.

    Attributes:
        title: of the report.
        data: folder of faces, packed or not, or the copy of the dataset; several folders are one set.
        dataset: how the folder is laid out: "celeba", "ffhq", "lfw", "webphoto" or "wider", as their authors publish
            them; "" for a packed set or a plain folder of aligned faces.
        split: of packed sets: "val", or "train" to see whether the weights know their training faces.
        faces: number of faces, spread evenly over the set; 0 takes all.
        subset: "extreme-pose", or NAME=VALUE of a label; "" takes all faces.
        by: labels of the faces; the report has further tables, one for each of their values.
        methods: names of methods or presets, or mappings with `name`, options of the method, and a `label` to
            call it by; as text NAME,option=value,…,NAME. `REFERENCES` come first, whether they are named or not.
        scales: R/n of the inputs.
        degradations: names (`faceprior.degradations.make_input`), or "none" for faces that are bad already.
        seeds: of damage and noise.
        samples: restorations of each face with each seed; of several, their mean is measured too.
        metrics: names (`faceprior.benchmark.metrics`); empty takes all that can be measured.
        baseline: label of the method that the others are compared with; "" is the corrector alone, else bicubic.
        reference: folder of faces for FID and KID; "" takes the true faces.
        identity_threshold: cosine similarity from which two embeddings count as one person; 0 is the network's own.
        arcface: checkpoint of an ArcFace IResNet that measures identity; "" is dlib's network.
        prior: see `--prior`; "" is the embedded one.
        corrector: see `--corrector`.
        adm_config: see `--adm-config`; "" is none.
        whole_batches: networks see whole batches on a CPU too: faster, but the last bits depend on the batch.
        batch_size: samples that go through the networks together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = "Benchmark"
    data: Annotated[list[str], Listed] = []
    dataset: Literal["", "celeba", "ffhq", "lfw", "webphoto", "wider"] = ""
    split: Literal["val", "train"] = "val"
    faces: int = Field(64, ge=0)
    subset: str = ""
    by: Annotated[list[str], Listed] = []
    methods: list[Any] = ["default"]
    scales: Annotated[list[Scale], Listed] = [8.0]
    degradations: Annotated[list[str], Listed] = ["bicubic"]
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Listed] = [0]
    samples: int = Field(1, ge=1)
    metrics: Annotated[list[str], Listed] = []
    baseline: str = ""
    reference: str = ""
    identity_threshold: float = Field(0.0, ge=-1, le=1)
    arcface: str = ""
    prior: str = ""
    corrector: str = "auto"
    adm_config: str = ""
    whole_batches: bool = False
    batch_size: int = Field(8, ge=1)

    @field_validator("methods", mode="before")
    @classmethod
    def _methods(cls, value: Any) -> Any:
        return split_methods(value) if isinstance(value, str) else value

    @field_validator("methods", "scales", "degradations", "seeds")
    @classmethod
    def _each_once(cls, value: list[Any]) -> list[Any]:
        if not value or len(set(map(str, value))) < len(value):
            raise ValueError("name at least one, and each once")
        return value

    @field_validator("degradations")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        for name in value:
            if name != NO_DEGRADATION:
                check_degradation(name)
        return value

    @field_validator("metrics")
    @classmethod
    def _measurable(cls, value: list[str]) -> list[str]:
        if unknown := sorted(set(value) - set(METRICS)):
            raise ValueError(f"metric {', '.join(unknown)} is not known; choose {', '.join(METRICS)}")
        return value

    def chosen_methods(self, references: Sequence[str] = ()) -> dict[str, Preset]:
        """Return the methods with all their options, by label, those named as references first.

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
        before = {name: find_preset(name) for name in references if name not in chosen}
        return {name: preset for name, preset in before.items() if preset not in chosen.values()} | chosen

    def damages(self) -> list[Damage]:
        """Every input × seed, in the order of the run."""
        return [Damage(*own) for own in product(self.degradations, self.scales, self.seeds)]


class Damage(NamedTuple):
    """How inputs are made: the degradation's name, or "none", the scale R/n, and the seed of damage and noise."""

    degradation: str
    scale: float
    seed: int

    @property
    def has_truth(self) -> bool:
        """Whether the sharp face is known."""
        return self.degradation != NO_DEGRADATION


def load_benchmark(path: Path | None, flags: Mapping[str, Any]) -> BenchmarkConfig:
    """Read options as `load_settings` does, and make sure that there are such methods; raises the same."""
    config = load_settings(BenchmarkConfig, path, flags)
    config.chosen_methods()
    return config


def split_methods(text: str) -> list[str]:
    """Split "NAME,option=value,NAME,…": what has an "=" belongs to the name before it."""
    entries: list[str] = []
    for part in text.split(","):
        if "=" in part and entries:
            entries[-1] += f",{part}"
        else:
            entries.append(part.strip())
    return entries


def read_method(entry: Any) -> tuple[str, Preset]:
    """Return label and options of an entry of `methods` (`BenchmarkConfig`).

    Raises:
        OptionError: it is none, or the method or an option is unknown or of the wrong kind.
    """
    if isinstance(entry, str):
        name, *texts = entry.split(",")
        entry = {"name": name.strip(), **dict(read_assignment(text, f"method {entry!r}") for text in texts)}
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise OptionError(f"method {entry!r}: write a name, or a mapping with name and options")
    options = {str(name): value for name, value in entry.items() if name not in ("name", "label")}
    name = entry["name"]
    preset = find_preset(name).with_options(**options)
    settings = [f"{option}={value}" for option, value in options.items()]
    return str(entry.get("label", " ".join([name, *settings]))), preset
