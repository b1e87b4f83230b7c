"""The network of the embedded prior: a `UNet2DModel` on top of the Gaussian denoiser.

`faceprior train prior` makes its successor, `GaussianResidualUNet`, whose weights will take its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput

from faceprior.errors import OptionError
from faceprior.priors.gaussian import GaussianDenoiser
from faceprior.priors.noise_schedule import NoiseSchedule


class FormerResidualUNet(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Predicts x0 as g(x_t) + s_t · F(x_t, g(x_t), t): Gaussian estimate plus scaled network residual.

    g is `GaussianDenoiser` and s_t the root mean square of its error at step t, measured on the training faces,
    so the network's target has unit variance at every noise level. F is a `UNet2DModel` behind a pixel-unshuffle
    by 2, which quarters the cost of the top level. A diffusers model of prediction type "sample".

    Args:
        sample_size: side R of the images, in pixels, divisible by 2 · 2^(levels).
        rank: principal components of the Gaussian in each mirror half.
        block_out_channels: U-Net widths, from R/2 downwards.
        attention: for each level, whether it has self-attention.
        layers_per_block: residual blocks a level.
        attention_head_dim: channels of an attention head.
        norm_num_groups: groups of each group norm.
        num_train_timesteps: T of the linear noise schedule.
        beta_start: β of its first step.
        beta_end: β of its last step.
    """

    error_std: torch.Tensor  # (T,), s_t
    alphas_cumprod: torch.Tensor  # (T,)

    @register_to_config
    def __init__(
        self,
        sample_size: int = 128,
        rank: int = 384,
        block_out_channels: Sequence[int] = (32, 96, 160, 224),
        attention: Sequence[bool] = (False, False, False, True),
        layers_per_block: int = 1,
        attention_head_dim: int = 32,
        norm_num_groups: int = 16,
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
    ) -> None:
        super().__init__()
        if block_out_channels[-1] % attention_head_dim:
            widest = block_out_channels[-1]
            raise OptionError(
                f"attention_head_dim {attention_head_dim} does not divide {widest}, the last level's width"
            )
        schedule = NoiseSchedule.linear(num_train_timesteps, beta_start, beta_end)
        self.gaussian = GaussianDenoiser(sample_size, rank)
        self.unet = UNet2DModel(
            sample_size=sample_size // 2,
            in_channels=24,  # (x_t, g) × RGB × 2 × 2
            out_channels=12,
            layers_per_block=layers_per_block,
            block_out_channels=tuple(block_out_channels),
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
            attention_head_dim=attention_head_dim,
            norm_num_groups=norm_num_groups,
            resnet_time_scale_shift="scale_shift",
        )
        torch.nn.init.zeros_(self.unet.conv_out.weight)  # training starts at the Gaussian estimate
        torch.nn.init.zeros_(self.unet.conv_out.bias)
        self.register_buffer("error_std", torch.ones(num_train_timesteps))
        self.register_buffer("alphas_cumprod", schedule.alphas_cumprod.float(), persistent=False)

    @property
    def input_dtype(self) -> torch.dtype:
        """Noisy images come in as float32 whatever the U-Net computes in: the Gaussian needs their precision."""
        return torch.float32

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> FormerResidualUNet:
        """Move everything, but cast the U-Net alone: the closed-form part stays in float32."""
        self.unet._apply(fn, recurse)  # noqa: SLF001 - torch's own hook for `to`
        return super()._apply(lambda tensor: tensor.to(fn(tensor.new_empty(0)).device), recurse)

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor | float, return_dict: bool = True
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """Estimate x0 (float32, unclipped).

        Args:
            sample: x_t, shape (B, 3, R, R).
            timestep: t, an integer or shape (B,).
            return_dict: return a `UNet2DOutput` rather than a tuple.
        """
        t = torch.as_tensor(timestep, device=sample.device).long().expand(sample.shape[0])
        gaussian = self.gaussian(sample, self.alphas_cumprod[t].view(-1, 1, 1, 1))
        features = F.pixel_unshuffle(torch.cat([sample.float(), gaussian], dim=1), 2)  # (B, 24, R/2, R/2)
        # not `unet.dtype`: diffusers looks at every module for that
        features = features.to(self.unet.conv_in.weight.dtype, memory_format=torch.channels_last)
        residual = F.pixel_shuffle(self.unet(features, t).sample.float(), 2)  # (B, 3, R, R)
        x0 = gaussian + self.error_std[t].view(-1, 1, 1, 1) * residual
        return UNet2DOutput(sample=x0) if return_dict else (x0,)
