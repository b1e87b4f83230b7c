"""The embedded prior's network: a small U-Net on top of the closed-form Gaussian denoiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from faceprior.networks import ConfiguredNetwork, ResidualUNet, keep_config, without_grid
from faceprior.priors.gaussian import GaussianDenoiser
from faceprior.priors.noise_schedule import NoiseSchedule


class Prediction(NamedTuple):
    """What a network says of x_t, under the name that diffusers' models have for it."""

    sample: torch.Tensor


class GaussianResidualUNet(ConfiguredNetwork):
    """Predicts x0 as g(x_t) + s_t · F(x_t, g(x_t), t): Gaussian estimate plus scaled network residual.

    g is `GaussianDenoiser` and s_t the root mean square of its error at step t, measured on the training faces,
    so the network's target has unit variance at every noise level. F is a `ResidualUNet` behind a pixel-unshuffle
    by 2, which quarters the cost of the top level. Its prediction type is "sample".

    Args:
        sample_size: side R of the images, in pixels, divisible by 2 · 2^(levels).
        rank: principal components of the Gaussian in each mirror half.
        widths: channels of each level of the U-Net, from R/2 downwards.
        blocks: residual blocks of each level, down and up again.
        num_train_timesteps: T of the linear noise schedule.
        beta_start: β of its first step.
        beta_end: β of its last step.
    """

    error_std: torch.Tensor  # (T,), s_t
    alphas_cumprod: torch.Tensor  # (T,)

    @keep_config
    def __init__(
        self,
        sample_size: int = 128,
        rank: int = 384,
        widths: Sequence[int] = (48, 96, 160, 224),
        blocks: Sequence[int] = (1, 1, 1, 2),
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
    ) -> None:
        super().__init__()
        schedule = NoiseSchedule.linear(num_train_timesteps, beta_start, beta_end)
        self.gaussian = GaussianDenoiser(sample_size, rank)
        self.unet = ResidualUNet(
            24, 12, widths, blocks
        )  # in: (x_t, g) × RGB × 2 × 2; starts at the Gaussian estimate
        self.register_buffer("error_std", torch.ones(num_train_timesteps))
        self.register_buffer("alphas_cumprod", schedule.alphas_cumprod.float(), persistent=False)

    @property
    def input_dtype(self) -> torch.dtype:
        """Noisy images come in as float32 whatever the U-Net computes in: the Gaussian needs their precision."""
        return torch.float32

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> GaussianResidualUNet:
        """Move everything, but cast the U-Net alone: the closed-form part stays in float32."""
        self.unet._apply(fn, recurse)  # noqa: SLF001 - torch's own hook for `to`
        return super()._apply(lambda tensor: tensor.to(fn(tensor.new_empty(0)).device), recurse)

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor | float, return_dict: bool = True
    ) -> Prediction | tuple[torch.Tensor]:
        """Estimate x0 (float32, unclipped).

        Args:
            sample: x_t, shape (B, 3, R, R).
            timestep: t, an integer or shape (B,).
            return_dict: return a `Prediction` rather than a plain tuple.
        """
        t = torch.as_tensor(timestep, device=sample.device).long().expand(sample.shape[0])
        gaussian = self.gaussian(sample, self.alphas_cumprod[t].view(-1, 1, 1, 1))
        features = F.pixel_unshuffle(torch.cat([sample.float(), gaussian], dim=1), 2)  # (B, 24, R/2, R/2)
        features = features.to(self.unet.conv_in.weight.dtype, memory_format=torch.channels_last)
        residual = F.pixel_shuffle(self.unet(features, t).float(), 2)  # (B, 3, R, R)
        x0 = without_grid(gaussian + self.error_std[t].view(-1, 1, 1, 1) * residual)
        return Prediction(x0) if return_dict else (x0,)
