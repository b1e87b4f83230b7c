"""A U-Net behind a pixel-unshuffle: the stock network at a quarter of the cost of its top level."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput


class UnshuffledUNet(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A `UNet2DModel` that sees each 2×2 block of pixels as the channels of one position.

    Args:
        sample_size: side R of the images, in pixels, divisible by 2 · 2^(levels).
        block_out_channels: U-Net widths, from R/2 downwards.
        attention: for each level, whether it has self-attention.
        layers_per_block: residual blocks a level.
        attention_head_dim: channels of an attention head.
        norm_num_groups: groups of each group norm.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 128,
        block_out_channels: Sequence[int] = (32, 96, 160, 224),
        attention: Sequence[bool] = (False, False, False, True),
        layers_per_block: int = 1,
        attention_head_dim: int = 32,
        norm_num_groups: int = 16,
    ) -> None:
        super().__init__()
        self.unet = UNet2DModel(
            sample_size=sample_size // 2,
            in_channels=12,
            out_channels=12,
            layers_per_block=layers_per_block,
            block_out_channels=tuple(block_out_channels),
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
            attention_head_dim=attention_head_dim,
            norm_num_groups=norm_num_groups,
            resnet_time_scale_shift="scale_shift",
        )

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor | float, return_dict: bool = True
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """Predict what the prior's prediction type says.

        Args:
            sample: x_t, shape (B, 3, R, R).
            timestep: t, an integer or shape (B,).
            return_dict: return a `UNet2DOutput` rather than a tuple.
        """
        predicted = F.pixel_shuffle(self.unet(F.pixel_unshuffle(sample, 2), timestep).sample, 2)
        return UNet2DOutput(sample=predicted) if return_dict else (predicted,)
