"""Training options, from a YAML file and from flags."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import yaml

from faceprior.errors import OptionError
from faceprior.priors.adapter import PredictionType

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

NetworkName = Literal["gaussian-residual", "unet"]
Weighting = Literal["residual", "plain", "min-snr", "p2"]
Config = TypeVar("Config", bound="DataclassInstance")
Network = TypeVar("Network")


@dataclass(frozen=True)
class TrainConfig:
    """Options that every training has.

    Attributes:
        steps: optimiser steps in all, resumed ones included.
        minutes: stop earlier, after so many minutes of computing (`log.jsonl` counts them); 0 is no limit.
        batch_size: faces a step, over all processes.
        learning_rate: peak of the learning rate, of Muon (inner convolutions) and AdamW (all else) alike.
        warmup_steps: steps of linear warm-up.
        decay_steps: last steps, over which the learning rate falls linearly to 0.
        weight_decay: decoupled, of both.
        gradient_clip: largest norm of the gradient.
        ema_decay: of the averaged weights that are evaluated and saved.
        mixed_precision: "no", "bf16", "fp16", or "auto": bf16 where the device computes it in hardware.
        flip: probability of a horizontal flip.
        balance: a source of n faces is drawn with a share ∝ n^balance; 1 draws faces alike, 0 sources alike.
        terms: terms of use to train on (for example ["open"]); empty trains on all.
        seed: of the weights' start, the batches and the noise.
        evaluate_every: steps between evaluations.
        evaluate_faces: held-out faces of an evaluation.
        checkpoint_every: steps between checkpoints.
        compile: run the network through torch.compile (worth it on CUDA only).
    """

    steps: int = 20_000
    minutes: float = 0.0
    batch_size: int = 16
    learning_rate: float = 3e-4
    warmup_steps: int = 200
    decay_steps: int = 0
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    flip: float = 0.5
    balance: float = 0.5
    terms: list[str] = field(default_factory=list)
    seed: int = 0
    evaluate_every: int = 500
    evaluate_faces: int = 64
    checkpoint_every: int = 250
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "evaluate_every", "evaluate_faces", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("flip", "ema_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise OptionError(f"{name} is {getattr(self, name)}; it must lie in 0 to 1")
        for name in ("minutes", "warmup_steps", "decay_steps", "weight_decay", "seed"):
            if getattr(self, name) < 0:
                raise OptionError(f"{name} is {getattr(self, name)}; it must be at least 0")
        for name in ("learning_rate", "gradient_clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise OptionError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.mixed_precision not in ("auto", "no", "bf16", "fp16"):
            raise OptionError(f"mixed_precision is {self.mixed_precision!r}; choose auto, no, bf16 or fp16")

    def learning_rate_factor(self, step: int) -> float:
        """Warm-up, plateau, decay: share of the peak learning rate at a step (0-based)."""
        warmup = min(1.0, (step + 1) / max(1, self.warmup_steps))
        decay = min(1.0, (self.steps - step) / self.decay_steps) if self.decay_steps else 1.0
        return warmup * decay


@dataclass(frozen=True)
class PriorConfig(TrainConfig):
    """Options of `faceprior train prior`.

    Attributes:
        network: "gaussian-residual" (the embedded prior's) or "unet" (a stock `UNet2DModel`).
        network_options: constructor arguments of the network.
        prediction_type: what the network predicts: "epsilon", "v_prediction" or "sample"; "gaussian-residual"
            always predicts its residual, which makes it a "sample" prior.
        weighting: weight of the squared x0 error at each noise level. "residual": 1 / s_t² of the Gaussian
            ("gaussian-residual" only), the plain loss of the normalised residual; "plain": the squared error of
            what is predicted, which is SNR for ε, SNR + 1 for v and 1 for x0; "min-snr": min(SNR, 5) (Hang et
            al. 2023, in x0 form); "p2": SNR / (1 + SNR) (Choi et al. 2022, γ = 1).
        low_noise: noise level, as a fraction of T, below which `low_noise_share` of the steps t are drawn.
        low_noise_share: that share; equal to `low_noise` it makes t uniform.
    """

    network: NetworkName = "gaussian-residual"
    network_options: dict[str, Any] = field(default_factory=dict)
    prediction_type: PredictionType = "epsilon"
    weighting: Weighting = "residual"
    low_noise: float = 0.6
    low_noise_share: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, kind in (("network", NetworkName), ("weighting", Weighting), ("prediction_type", PredictionType)):
            if getattr(self, name) not in get_args(kind):
                raise OptionError(f"{name} is {getattr(self, name)!r}; choose {', '.join(get_args(kind))}")
        for name in ("low_noise", "low_noise_share"):
            if not 0 < getattr(self, name) < 1:
                raise OptionError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1")
        if self.weighting == "residual" and self.network != "gaussian-residual":
            raise OptionError("weighting residual needs the network gaussian-residual; choose plain, min-snr or p2")


@dataclass(frozen=True)
class CorrectorConfig(TrainConfig):
    """Options of `faceprior train corrector`.

    Attributes:
        network: "blind" (`BlindCorrector`, the embedded one's) or "paper" (`PaperCorrector`, the authors').
        network_options: constructor arguments of the network.
        sample_around: what the samples that it sees are drawn around: "truth", x_t ~ q(x_t | x_0), from which it
            learns E[x_0 | x_t, y]; or "condition", x_t ~ q(x_t | y), as the authors do, which teaches it E[x_0 | y].
        scales: smallest and largest reduction; drawn log-uniformly between them.
        damaged: share of the faces with more than a clean bicubic reduction.
        alone: share of the faces that come without a sample (t = T − 1).
        highest: highest level of the other samples, as a fraction of T.
    """

    network: Literal["blind", "paper"] = "blind"
    network_options: dict[str, Any] = field(default_factory=dict)
    sample_around: Literal["truth", "condition"] = "truth"
    scales: list[float] = field(default_factory=lambda: [4.0, 32.0])
    damaged: float = 0.5
    alone: float = 0.2
    highest: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.scales) != 2 or not 1 <= self.scales[0] <= self.scales[1]:
            raise OptionError(f"scales is {self.scales}; give the smallest and the largest, at least 1")
        for name in ("damaged", "alone", "highest"):
            if not 0 <= getattr(self, name) <= 1:
                raise OptionError(f"{name} is {getattr(self, name)}; it must lie in 0 to 1")
        for name, choices in (("network", ("blind", "paper")), ("sample_around", ("truth", "condition"))):
            if getattr(self, name) not in choices:
                raise OptionError(f"{name} is {getattr(self, name)!r}; choose {' or '.join(choices)}")


def load_config(kind: type[Config], path: Path | None, flags: dict[str, Any]) -> Config:
    """Read a YAML file and lay the flags that were given (not None) over it.

    Raises:
        OptionError: the file cannot be read, an option does not exist, or a value is of the wrong kind or out
            of range.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except OSError as error:
            raise OptionError(f"{path}: cannot be read ({error.strerror})") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise OptionError(f"{path}: is not valid YAML ({' '.join(str(error).split())})") from error
        if not isinstance(values, dict):
            raise OptionError(f"{path}: is not a list of `option: value` lines")
    origin = path or "flags"
    known = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(kind)}
    values = {**values, **{name: value for name, value in flags.items() if value is not None}}
    if unknown := sorted(str(name) for name in values if name not in known):
        raise OptionError(f"{origin}: unknown options {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    for name, value in values.items():
        values[name] = like(known[name], value, f"{origin}: {name} is {value!r}")
    try:
        return kind(**values)
    except TypeError as error:
        raise OptionError(f"{origin}: {error}") from error


def like(default: Any, value: Any, what: str) -> Any:
    """Return a value as the kind of number that an option's default is.

    Raises:
        OptionError: it is of another kind; the message begins with `what`.
    """
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise OptionError(f"{what}; write true or false")
    elif isinstance(default, int | float):
        try:
            number = float(value)  # also of the text that YAML makes of 3e-4
            return number if isinstance(default, float) else int(str(value))
        except (TypeError, ValueError) as error:
            kind = "a number" if isinstance(default, float) else "a whole number"
            raise OptionError(f"{what}; it must be {kind}") from error
    elif isinstance(default, list | dict) and not isinstance(value, type(default)):
        raise OptionError(f"{what}; it must be a {'list' if isinstance(default, list) else 'mapping'}")
    return value


def build_network(kind: Callable[..., Network], options: dict[str, Any], **fixed: Any) -> Network:
    """Make a network from its options; raises OptionError if they do not fit together."""
    try:
        return kind(**fixed, **options)
    except (TypeError, ValueError, ArithmeticError, LookupError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise OptionError(f"network_options {options} do not make a network ({reason})") from error


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Plain values, for YAML, cards and logs."""
    return asdict(config)
