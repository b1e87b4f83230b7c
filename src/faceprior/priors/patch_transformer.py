"""A transformer on patches (DiT, Peebles & Xie 2023), unconditional."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, DiTTransformer2DModel, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput


class PatchTransformer(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """diffusers' DiT on the pixels themselves, with one class for all faces.

    Args:
        sample_size: side R of the images, in pixels, divisible by `patch_size`.
        patch_size: side of a patch, in pixels.
        num_layers: transformer blocks.
        num_attention_heads: heads of each attention.
        attention_head_dim: channels of a head.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 128,
        patch_size: int = 8,
        num_layers: int = 8,
        num_attention_heads: int = 6,
        attention_head_dim: int = 64,
    ) -> None:
        super().__init__()
        self.transformer = DiTTransformer2DModel(
            sample_size=sample_size,
            patch_size=patch_size,
            in_channels=3,
            out_channels=3,
            num_layers=num_layers,
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            num_embeds_ada_norm=1,
        )
        for block in self.transformer.transformer_blocks:
            block.norm1.emb.class_embedder.dropout_prob = 0.0  # there is no class to leave out

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor | float, return_dict: bool = True
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """Predict what the prior's prediction type says.

        Args:
            sample: x_t, shape (B, 3, R, R).
            timestep: t, an integer or shape (B,).
            return_dict: return a `UNet2DOutput` rather than a tuple.
        """
        t = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        predicted = self.transformer(sample, t, torch.zeros_like(t, dtype=torch.long)).sample
        return UNet2DOutput(sample=predicted) if return_dict else (predicted,)
