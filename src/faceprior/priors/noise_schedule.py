"""The noise levels that a prior was trained with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from faceprior.errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class NoiseSchedule:
    """Variance-preserving noise: x_t = √ᾱ_t · x0 + √(1 − ᾱ_t) · ε (Ho et al. 2020, eq. 4).

    Attributes:
        alphas_cumprod: ᾱ_t for t = 0 … T−1, float64, shape (T,), falling, in (0, 1).
    """

    alphas_cumprod: torch.Tensor

    @classmethod
    def linear(cls, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
        """The linear schedule of DDPM, which ADM and the paper's prior use."""
        betas = torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)
        return cls(torch.cumprod(1.0 - betas, 0))

    @classmethod
    def from_scheduler_config(cls, config: Mapping[str, Any]) -> NoiseSchedule:
        """Read the schedule out of a diffusers scheduler's configuration.

        Raises:
            WeightsError: the scheduler is not of the DDPM family (discrete steps, betas).
        """
        kind, trained = config.get("beta_schedule"), config.get("trained_betas")
        steps = int(config.get("num_train_timesteps", 1000))
        start, end = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
        if trained is None and kind is None:
            name = config.get("_class_name", "this scheduler")
            raise WeightsError(
                f"{name} has no beta_schedule; a prior needs the noise schedule of a DDPM-family scheduler"
            )
        if config.get("rescale_betas_zero_snr"):
            raise WeightsError("a schedule rescaled to zero terminal SNR is not supported")
        if trained is not None:
            betas = torch.tensor(trained, dtype=torch.float64)
        elif kind == "linear":
            return cls.linear(steps, start, end)
        elif kind == "scaled_linear":
            betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
        elif kind == "squaredcos_cap_v2":  # Nichol & Dhariwal 2021, eq. 17
            level = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
            alphas_cumprod = torch.cos((level + 0.008) / 1.008 * torch.pi / 2) ** 2
            betas = (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=0.999)
        else:
            raise WeightsError(
                f"beta schedule {kind!r} is not known; a prior needs a DDPM-family schedule"
                " (linear, scaled_linear, squaredcos_cap_v2 or trained betas)"
            )
        return cls(torch.cumprod(1.0 - betas, 0))

    def __len__(self) -> int:
        return self.alphas_cumprod.numel()

    def at(self, t: torch.Tensor) -> torch.Tensor:
        """ᾱ_t in float32 for steps t of shape (B,), shaped (B, 1, 1, 1) to meet images."""
        return self.alphas_cumprod.float().to(t.device)[t].view(-1, 1, 1, 1)

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Draw x_t ~ q(x_t | x0): x0 and noise (B, C, H, W), t (B,)."""
        alphas_cumprod = self.at(t)
        return alphas_cumprod.sqrt() * x0 + (1.0 - alphas_cumprod).sqrt() * noise

    def equals(self, other: NoiseSchedule) -> bool:
        """Whether two schedules have the same noise levels, to 1e-5."""
        return len(self) == len(other) and torch.allclose(
            self.alphas_cumprod, other.alphas_cumprod, rtol=1e-5, atol=1e-8
        )


def ddim_scheduler_config(schedule: dict[str, Any], prediction_type: str) -> dict[str, Any]:
    """Return the configuration of the `DDIMScheduler` that is ADM's ddim sampler, for a noise schedule."""
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "trained_betas": None,
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "timestep_spacing": "leading",
        **schedule,
        "prediction_type": prediction_type,
    }
