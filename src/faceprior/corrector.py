"""CRT, the condition corrector of DPI: a small U-Net that turns a blurred guess into the true pixels.

After each step of the sampler it sees the sample x_{t−1} on the mask's grid, t, and the first condition, and
predicts the clean face on the grid: the condition of the next step. It never sees a prior, so one corrector serves
every prior of its resolution and noise schedule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from torch import nn

from faceprior.errors import OptionError, WeightsError
from faceprior.images import resize
from faceprior.priors.card import ModelCard, file_sha256
from faceprior.priors.noise_schedule import NoiseSchedule
from faceprior.priors.store import (
    embedded_cards,
    find_weights,
    load_network,
    read_card,
    read_json,
    resolve,
    save_network,
    write_card,
)

Placement = Literal["resized", "sampled"]

_CONDITION_SHARE = 0.1  # weight of the grey condition in the first feature map, from the reference code


def make_condition(low_resolution: torch.Tensor, resolution: int, stride: int, placement: Placement) -> torch.Tensor:
    """Lift low-resolution faces to the pixels of the mask's grid.

    Args:
        low_resolution: (B, 3, n, n) in [-1, 1].
        resolution: side R of the restored face.
        stride: k; the grid holds the pixels (i, j) with both multiples of k.
        placement: "resized": resize bicubically to (R/k)×(R/k) and let those pixels stand on the grid, as the
            paper does, which shifts the face by (k − 1)/2 pixels; "sampled": resize to R×R and take the grid's
            pixels out of it, which does not.

    Returns:
        (B, 3, R/k, R/k) in [-1, 1].
    """
    if placement == "resized":
        return resize(low_resolution, resolution // stride).clamp(-1, 1)
    return resize(low_resolution, resolution)[..., ::stride, ::stride].clamp(-1, 1)


class _AddCondition(nn.Conv2d):
    """First convolution of the reference network: conv(x) + 0.1 · mean over channels of y."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        x, condition = inputs.chunk(2, dim=1)
        return super().forward(x) + _CONDITION_SHARE * condition.mean(1, keepdim=True)


class ConditionCorrector(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Predicts the clean face on the grid from (x_{t−1}, t, first condition); the output is a correction to y.

    The defaults are the paper's network.

    Args:
        resolution: side R of the faces.
        stride: k of the grid.
        grid: "sparse": compute on R×R with zeros off the grid, as the paper; "dense": compute on the
            (R/k)×(R/k) grid itself, k² times cheaper.
        injection: "add": the first feature map gets + 0.1 · mean over channels of y, as the paper; "concat": y
            joins x as three more input channels.
        placement: how the conditions that it was trained on were made (`make_condition`).
        block_out_channels: U-Net widths, from the grid downwards.
        attention: for each level, whether it has self-attention.
        layers_per_block: residual blocks a level.
        attention_head_dim: channels of an attention head.
        norm_num_groups: groups of each group norm.
        num_train_timesteps: T of the linear noise schedule.
        beta_start: β of its first step.
        beta_end: β of its last step.
    """

    @register_to_config
    def __init__(
        self,
        resolution: int = 256,
        stride: int = 2,
        grid: Literal["sparse", "dense"] = "sparse",
        injection: Literal["add", "concat"] = "add",
        placement: Placement = "resized",
        block_out_channels: Sequence[int] = (32, 32, 64, 64, 128, 128),
        attention: Sequence[bool] = (False, False, False, False, False, True),
        layers_per_block: int = 1,
        attention_head_dim: int = 16,
        norm_num_groups: int = 32,
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
        self.resolution, self.stride, self.grid, self.placement = resolution, stride, grid, placement
        self.schedule = NoiseSchedule.linear(num_train_timesteps, beta_start, beta_end)
        self.unet = UNet2DModel(
            sample_size=resolution if grid == "sparse" else resolution // stride,
            in_channels=6,
            out_channels=3,
            layers_per_block=layers_per_block,
            block_out_channels=tuple(block_out_channels),
            down_block_types=tuple("AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attention),
            up_block_types=tuple("AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attention)),
            attention_head_dim=attention_head_dim,
            norm_num_groups=norm_num_groups,
            resnet_time_scale_shift="scale_shift",
            downsample_type="resnet",
            upsample_type="resnet",
        )
        if injection == "add":
            self.unet.conv_in = _AddCondition(3, block_out_channels[0], 3, padding=1)
        nn.init.zeros_(self.unet.conv_out.weight)  # training starts at the uncorrected condition
        nn.init.zeros_(self.unet.conv_out.bias)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor | float, condition: torch.Tensor) -> torch.Tensor:
        """Correct a condition.

        Args:
            sample: x_{t−1}, (B, 3, R, R); only the grid's pixels are looked at.
            timestep: t, an integer or shape (B,).
            condition: the first condition, (B, 3, R/k, R/k) in [-1, 1].

        Returns:
            The clean face on the grid, (B, 3, R/k, R/k), float32.
        """
        t = torch.as_tensor(timestep, device=sample.device).long().expand(sample.shape[0])
        inputs = torch.cat([sample[..., :: self.stride, :: self.stride], condition], dim=1)
        if self.grid == "sparse":
            scattered = inputs.new_zeros(*inputs.shape[:2], *sample.shape[2:])
            scattered[..., :: self.stride, :: self.stride] = inputs
            inputs = scattered
        # not `unet.dtype`: diffusers looks at every module for that
        inputs = inputs.to(self.unet.conv_in.weight.dtype, memory_format=torch.channels_last)
        correction = self.unet(inputs, t).sample.float()
        if self.grid == "sparse":
            correction = correction[..., :: self.stride, :: self.stride]
        return condition + correction


@dataclass(frozen=True)
class Corrector:
    """A loaded corrector and its card."""

    network: ConditionCorrector
    card: ModelCard

    def first_condition(self, low_resolution: torch.Tensor) -> torch.Tensor:
        """Condition as this corrector was trained on it: (B, 3, n, n) → (B, 3, R/k, R/k)."""
        network = self.network
        return make_condition(low_resolution, network.resolution, network.stride, network.placement)

    def check(self, resolution: int, schedule: NoiseSchedule, stride: int) -> None:
        """Check that it serves a prior and a stride.

        Raises:
            OptionError: the resolution, the noise schedule or the stride does not fit.
        """
        name = self.card.name
        if self.network.resolution != resolution:
            raise OptionError(
                f"corrector {name} is for {self.network.resolution}×{self.network.resolution} faces, the prior for"
                f" {resolution}×{resolution}; choose another with --corrector, or none"
            )
        if not self.network.schedule.equals(schedule):
            raise OptionError(
                f"corrector {name} was trained with another noise schedule than the prior;"
                " choose another with --corrector, or none"
            )
        if stride % self.network.stride:
            raise OptionError(
                f"stride {stride} is not a multiple of the corrector's stride {self.network.stride};"
                " change --stride, or use --corrector none"
            )


def load_corrector(
    spec: str | Path, *, variant: str | None = None, use_safetensors: bool | None = None, **hub: Any
) -> Corrector:
    """Load a corrector in float32 on the CPU.

    Args:
        spec: name of an embedded corrector, a folder as `save_corrector` writes it, or a hub id.
        variant: see `faceprior.priors.store.find_weights`.
        use_safetensors: see there.
        **hub: see `faceprior.priors.store.resolve`.

    Raises:
        WeightsError: nothing is found, a key or shape does not fit, or a sha256 is not the card's.
    """
    folder = resolve(spec, "corrector", **hub)
    if not folder.is_dir():
        raise WeightsError(f"{folder}: a corrector is a folder with config.json and its weights, not a file")
    weights = find_weights(folder, variant, use_safetensors=use_safetensors)
    card = read_card(folder, weights)
    config = read_json(folder / "config.json")
    if config.get("_class_name") != "ConditionCorrector":
        raise WeightsError(f"{folder}: holds a {config.get('_class_name')}, not a ConditionCorrector")
    network = load_network(weights, ConditionCorrector)
    assert isinstance(network, ConditionCorrector)  # noqa: S101 - load_network returns the class it is given
    if card is None:
        sha256 = file_sha256(weights)
        card = ModelCard(kind="corrector", name=folder.name, resolution=network.resolution, sha256=sha256)
    return Corrector(network, card)


def save_corrector(corrector: Corrector, folder: Path, *, half: bool = True, **how: Any) -> ModelCard:
    """Write a corrector as a diffusers model folder with its card; returns the card with the new sha256.

    `how` are options of `faceprior.priors.store.save_network`.
    """
    weights = save_network(corrector.network, folder, half=half, **how)
    return write_card(corrector.card, folder, weights)


def embedded_corrector_for(resolution: int, schedule: NoiseSchedule) -> Corrector | None:
    """Return the embedded corrector that serves a prior of this resolution and schedule, if there is one."""
    for name, card in embedded_cards("corrector").items():
        if card.resolution == resolution and NoiseSchedule.from_scheduler_config(card.schedule).equals(schedule):
            return load_corrector(name)
    return None
