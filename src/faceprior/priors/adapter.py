"""One face for every prior: a sampler sees (x_t, t) → (x0, eps) and nothing of what the network predicts."""

from __future__ import annotations

from typing import NamedTuple, get_args

import torch
from torch import nn

from faceprior.errors import WeightsError
from faceprior.priors.card import ModelCard, PredictionType
from faceprior.priors.noise_schedule import NoiseSchedule


class Estimate(NamedTuple):
    """What a prior says of a noisy image; all tensors float32, shape (B, 3, R, R).

    Attributes:
        x0: estimate of the clean image, not clipped.
        eps: estimate of the noise; x_t = √ᾱ_t · x0 + √(1 − ᾱ_t) · eps holds.
        variance_range: for learned-range priors the network's v in [-1, 1], between the posterior variance
            (-1) and β_t (1) (Nichol & Dhariwal 2021, eq. 15); None for the others.
    """

    x0: torch.Tensor
    eps: torch.Tensor
    variance_range: torch.Tensor | None


class Prior:
    """An unconditional diffusion model behind one interface.

    Args:
        network: maps (x_t, t) to an object with `.sample` of 3 or 6 channels, as diffusers models do.
        card: what the prior is and where it came from, its noise schedule, and what the first 3 channels mean.

    Raises:
        WeightsError: the noise schedule or the prediction type is unknown.
    """

    def __init__(self, network: nn.Module, card: ModelCard) -> None:
        self.network, self.card = network, card
        self.schedule = NoiseSchedule.from_scheduler_config(card.schedule)
        self.check_prediction_type(card.prediction_type)

    @staticmethod
    def check_prediction_type(name: str) -> None:
        """Check that a prior can have this prediction type; raises WeightsError."""
        if name not in get_args(PredictionType):
            known = ", ".join(get_args(PredictionType))
            raise WeightsError(f"prediction type {name!r} is not one of {known}")

    @property
    def resolution(self) -> int:
        """Side R of the images, in pixels."""
        return self.card.resolution

    @property
    def device(self) -> torch.device:
        """Where the network's parameters lie."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return next(self.network.parameters()).dtype

    def to(self, device: torch.device, dtype: torch.dtype) -> Prior:
        """Move the network, which then computes in `dtype`; its inputs and outputs stay float32."""
        nn.Module.to(self.network, device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self

    def __call__(self, x_t: torch.Tensor, t: torch.Tensor) -> Estimate:
        """Estimate x0 and the noise.

        Args:
            x_t: noisy images, float32, (B, 3, R, R).
            t: steps, int64, (B,), each in 0 … T−1.
        """
        alphas_cumprod = self.schedule.at(t)
        signal, noise = alphas_cumprod.sqrt(), (1.0 - alphas_cumprod).sqrt()
        dtype = getattr(self.network, "input_dtype", self.dtype)
        predicted = self.network(x_t.to(dtype), t).sample.float()
        variance_range = None
        if predicted.shape[1] == 2 * x_t.shape[1]:
            predicted, variance_range = predicted.chunk(2, dim=1)
        if self.card.prediction_type == "epsilon":
            return Estimate((x_t - noise * predicted) / signal, predicted, variance_range)
        if self.card.prediction_type == "v_prediction":
            return Estimate(signal * x_t - noise * predicted, noise * x_t + signal * predicted, variance_range)
        return Estimate(predicted, (x_t - signal * predicted) / noise, variance_range)
