"""Training options, from a YAML file and from flags."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from faceprior.errors import OptionError, one_line
from faceprior.priors.card import PredictionType

NetworkName = Literal["gaussian-residual", "unet"]
Weighting = Literal["residual", "plain", "min-snr", "p2"]
Network = TypeVar("Network")
Share = Annotated[float, Field(ge=0, le=1)]


class TrainConfig(BaseModel):
    """Options that every training has.

    Attributes:
        steps: optimiser steps in all, resumed ones included.
        minutes: stop earlier, after so many minutes of computing (`log.jsonl` counts them); 0 is no limit.
        batch_size: faces a step, over all processes.
        learning_rate: peak of the learning rate, of Muon (inner convolutions) and AdamW (all else) alike.
        warmup_steps: steps of linear warm-up.
        decay: last part of the run, a share of its steps or of its minutes, over which the learning rate falls
            linearly to 0.
        weight_decay: decoupled, of both.
        gradient_clip: largest norm of the gradient.
        ema_decay: of the averaged weights that are evaluated and saved.
        mixed_precision: "no", "bf16", "fp16", or "auto": bf16 where the device computes it in hardware.
        workers: processes that read faces, and damage them, ahead of the step; None: as many as there are cores
            beside each process on a GPU, and none on a CPU, where the step needs the cores itself.
        flip: probability of a horizontal flip.
        balance: a source of n faces is drawn with a share ∝ n^balance; 1 draws faces alike, 0 sources alike.
        terms: terms of use to train on (for example ["open"]); empty trains on all.
        at_least: labels (columns of the folder's `index.csv`) and the least value of each that a face to train on
            must have, for example {sharpness: 0.07}.
        seed: of the weights' start, the batches and the noise.
        evaluate_every: steps between evaluations.
        evaluate_faces: held-out faces of an evaluation.
        checkpoint_every: steps between checkpoints.
        compile: run the network through torch.compile (worth it on CUDA only).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(20_000, ge=1)
    minutes: float = Field(0.0, ge=0)
    batch_size: int = Field(16, ge=1)
    learning_rate: float = Field(3e-4, gt=0, allow_inf_nan=False)
    warmup_steps: int = Field(200, ge=0)
    decay: Share = 0.0
    weight_decay: float = Field(0.01, ge=0)
    gradient_clip: float = Field(1.0, gt=0, allow_inf_nan=False)
    ema_decay: Share = 0.999
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    workers: int | None = Field(None, ge=0)
    flip: Share = 0.5
    balance: float = 0.5
    terms: list[str] = []
    at_least: dict[str, float] = {}
    seed: int = Field(0, ge=0)
    evaluate_every: int = Field(500, ge=1)
    evaluate_faces: int = Field(64, ge=1)
    checkpoint_every: int = Field(250, ge=1)
    compile: bool = False

    def learning_rate_factor(self, step: int, seconds: float = 0.0) -> float:
        """Warm-up, plateau, decay: share of the peak learning rate at a step (0-based), `seconds` into the run."""
        warmup = min(1.0, (step + 1) / max(1, self.warmup_steps))
        left = 1 - max(step / self.steps, seconds / (60 * self.minutes) if self.minutes else 0.0)
        decay = min(1.0, max(0.0, left) / self.decay) if self.decay else 1.0
        return warmup * decay


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
    network_options: dict[str, Any] = {}
    prediction_type: PredictionType = "epsilon"
    low_noise: float = Field(0.6, gt=0, lt=1)
    low_noise_share: float = Field(0.6, gt=0, lt=1)
    weighting: Weighting = Field("residual", validate_default=True)

    @field_validator("weighting")
    @classmethod
    def _fits_the_network(cls, value: Weighting, others: ValidationInfo) -> Weighting:
        if value == "residual" and others.data.get("network") == "unet":
            raise ValueError("it needs the network gaussian-residual; choose plain, min-snr or p2")
        return value


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
        framing: widest and closest framing of a face beside that of its picture, 1; drawn log-uniformly between
            them, so that one corrector serves priors whose faces are not cut out quite alike.
    """

    network: Literal["blind", "paper"] = "blind"
    network_options: dict[str, Any] = {}
    sample_around: Literal["truth", "condition"] = "truth"
    scales: list[float] = [4.0, 32.0]
    damaged: Share = 0.5
    alone: Share = 0.2
    highest: Share = 0.6
    framing: list[float] = [1.0, 1.0]

    @field_validator("scales", "framing")
    @classmethod
    def _from_small_to_large(cls, value: list[float], info: ValidationInfo) -> list[float]:
        least = 1 if info.field_name == "scales" else 0.5
        if len(value) != 2 or not least <= value[0] <= value[1]:
            raise ValueError(f"give the smallest and the largest, at least {least}")
        return value


def build_network(kind: Callable[..., Network], options: dict[str, Any], **fixed: Any) -> Network:
    """Make a network from its options; raises OptionError if they do not fit together."""
    try:
        return kind(**fixed, **options)
    except (TypeError, ValueError, ArithmeticError, LookupError, RuntimeError) as error:
        raise OptionError(f"network_options {options} do not make a network ({one_line(error)})") from error
