"""CRT, the condition corrector of DPI: a small U-Net that turns a bad face into a guess of the true pixels.

After each step of the sampler it sees the sample on the mask's grid and the bad face, and predicts the clean face:
the condition of the next step. It never sees a prior, so one corrector serves every prior of its resolution and noise
schedule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from faceprior.errors import OptionError, WeightsError
from faceprior.images import resize
from faceprior.networks import ConfiguredNetwork, ResidualUNet, keep_config, without_grid
from faceprior.priors.adapter import Prior
from faceprior.priors.card import ModelCard, file_sha256, read_json
from faceprior.priors.noise_schedule import NoiseSchedule
from faceprior.priors.store import (
    embedded_cards,
    find_weights,
    load_network,
    read_card,
    resolve,
    save_network,
    write_card,
)

Placement = Literal["resized", "sampled"]

_CONDITION_SHARE = 0.1  # weight of the grey condition in the first feature map, from the reference code
_TRUSTED_VARIANCE = 0.01  # of the sample's noise, in [-1, 1]: below it the sample knows more than the network


class Correction(NamedTuple):
    """What a corrector says of a face.

    Attributes:
        x0: the clean face, (B, 3, R, R), float32, not clipped.
        log_error: logarithm of the expected squared error of each pixel, mean over channels, (B, 1, R, R); None where
            the corrector does not know.
    """

    x0: torch.Tensor
    log_error: torch.Tensor | None


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


def enlarge_grid(values: torch.Tensor, stride: int) -> torch.Tensor:
    """Fill the pixels between those of the grid bicubically: (B, 3, R/k, R/k) → (B, 3, R, R)."""
    if stride == 1:
        return values
    side = stride * (values.shape[-1] - 1) + 1  # from the grid's first pixel to its last
    filled = F.interpolate(values, size=(side, side), mode="bicubic", align_corners=True)
    return F.pad(filled, (0, stride - 1, 0, stride - 1), mode="replicate")


class BlindCorrector(ConfiguredNetwork):
    """E[x0 | grid of x_t, bad face]: a conditional denoiser of the grid that fills the pixels between, too.

    It sees the bad face at the prior's own resolution, whatever was done to it, and the sample on the grid. There
    its answer is (1 − g) · x_t/√ᾱ + g · F with g = σ²/(σ² + 0.01) and σ² = (1 − ᾱ)/ᾱ, so that it is exact where
    the sample has no noise; between the grid's pixels it is F. F is the bad face plus a `ResidualUNet` behind a
    pixel-unshuffle by the stride. A sample enters as √ᾱ · x_t and fades out where it is noise alone.

    Args:
        resolution: side R of the faces.
        stride: k of the grid.
        widths: channels of each level of the U-Net, from R/k downwards.
        blocks: residual blocks of each level, down and up again.
        num_train_timesteps: T of the linear noise schedule.
        beta_start: β of its first step.
        beta_end: β of its last step.
    """

    knows_level: ClassVar[bool] = True
    """It is told the level of the sample that it sees."""

    @keep_config
    def __init__(
        self,
        resolution: int = 128,
        stride: int = 2,
        widths: Sequence[int] = (40, 80, 144, 192),
        blocks: Sequence[int] = (1, 1, 2, 2),
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
    ) -> None:
        super().__init__()
        self.resolution, self.stride = resolution, stride
        self.schedule = NoiseSchedule.linear(num_train_timesteps, beta_start, beta_end)
        phases = stride * stride
        self.unet = ResidualUNet(3 + 3 * phases, 4 * phases, widths, blocks)

    def see(self, low_resolution: torch.Tensor) -> torch.Tensor:
        """Enlarge faces bicubically: (B, 3, n, n) → (B, 3, R, R)."""
        return resize(low_resolution, self.resolution).clamp(-1, 1)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor | float, seen: torch.Tensor) -> Correction:
        """Restore a face.

        Args:
            sample: x_t, (B, 3, R, R); only the grid's pixels are looked at.
            timestep: t, an integer or shape (B,).
            seen: the bad face, (B, 3, R, R) in [-1, 1].
        """
        t = torch.as_tensor(timestep, device=sample.device).long().expand(sample.shape[0])
        level = self.schedule.at(t)  # (B, 1, 1, 1)
        grid = sample[..., :: self.stride, :: self.stride]
        inputs = torch.cat([level.sqrt() * grid, F.pixel_unshuffle(seen, self.stride)], dim=1)
        inputs = inputs.to(self.unet.conv_in.weight.dtype, memory_format=torch.channels_last)
        outputs = F.pixel_shuffle(self.unet(inputs, t).float(), self.stride)  # (B, 4, R, R)
        x0 = without_grid(seen + outputs[:, :3])
        variance = (1 - level) / level
        trust = _TRUSTED_VARIANCE / (variance + _TRUSTED_VARIANCE)  # 1 − g
        known = x0[..., :: self.stride, :: self.stride]
        x0[..., :: self.stride, :: self.stride] = known + trust * (grid / level.sqrt() - known)
        return Correction(x0, outputs[:, 3:])


class _AddCondition(nn.Conv2d):
    """First convolution of the reference network: conv(x) + 0.1 · mean over channels of y."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        x, condition = inputs.chunk(2, dim=1)
        return super().forward(x) + _CONDITION_SHARE * condition.mean(1, keepdim=True)


class PaperCorrector(ConfiguredNetwork):
    """The authors' network: the clean face on the grid from (M ⊙ x_{t−1}, t, M ⊙ y), as a correction to y.

    It computes on R×R, with zeros off the grid.

    Args:
        resolution: side R of the faces.
        stride: k of the grid.
        block_out_channels: U-Net widths, from R downwards.
        attention: for each level, whether it has self-attention.
        layers_per_block: residual blocks a level.
        attention_head_dim: channels of an attention head.
        norm_num_groups: groups of each group norm.
        num_train_timesteps: T of the linear noise schedule.
        beta_start: β of its first step.
        beta_end: β of its last step.
    """

    knows_level: ClassVar[bool] = False
    """It is told the step that led to the sample that it sees, as in the authors' code."""

    @keep_config
    def __init__(
        self,
        resolution: int = 256,
        stride: int = 2,
        block_out_channels: Sequence[int] = (32, 32, 64, 64, 128, 128),
        attention: Sequence[bool] = (False, False, False, False, False, True),
        layers_per_block: int = 1,
        attention_head_dim: int = 16,
        norm_num_groups: int = 32,
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
    ) -> None:
        from diffusers import UNet2DModel  # takes seconds

        super().__init__()
        if block_out_channels[-1] % attention_head_dim:
            widest = block_out_channels[-1]
            raise OptionError(
                f"attention_head_dim {attention_head_dim} does not divide {widest}, the last level's width"
            )
        self.resolution, self.stride = resolution, stride
        self.schedule = NoiseSchedule.linear(num_train_timesteps, beta_start, beta_end)
        self.unet = UNet2DModel(
            sample_size=resolution,
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
        self.unet.conv_in = _AddCondition(3, block_out_channels[0], 3, padding=1)
        nn.init.zeros_(self.unet.conv_out.weight)  # training starts at the uncorrected condition
        nn.init.zeros_(self.unet.conv_out.bias)

    def see(self, low_resolution: torch.Tensor) -> torch.Tensor:
        """Condition on the grid: (B, 3, n, n) → (B, 3, R/k, R/k)."""
        return make_condition(low_resolution, self.resolution, self.stride, "resized")

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor | float, seen: torch.Tensor) -> Correction:
        """Correct a condition.

        Args:
            sample: x_{t−1}, (B, 3, R, R); only the grid's pixels are looked at.
            timestep: t, an integer or shape (B,).
            seen: the first condition, (B, 3, R/k, R/k) in [-1, 1].
        """
        t = torch.as_tensor(timestep, device=sample.device).long().expand(sample.shape[0])
        grid = torch.cat([sample[..., :: self.stride, :: self.stride], seen], dim=1)
        inputs = grid.new_zeros(*grid.shape[:2], *sample.shape[2:])
        inputs[..., :: self.stride, :: self.stride] = grid
        # not `unet.dtype`: diffusers looks at every module for that
        inputs = inputs.to(self.unet.conv_in.weight.dtype, memory_format=torch.channels_last)
        correction = self.unet(inputs, t).sample.float()[..., :: self.stride, :: self.stride]
        return Correction(enlarge_grid(seen + correction, self.stride), None)


CorrectorNetwork = BlindCorrector | PaperCorrector
"""The corrector's networks, ours and the authors'."""

_NETWORKS: dict[str, type[nn.Module]] = {"BlindCorrector": BlindCorrector, "PaperCorrector": PaperCorrector}


@dataclass(frozen=True)
class Corrector:
    """A loaded corrector and its card."""

    network: CorrectorNetwork
    card: ModelCard

    def alone(self, seen: torch.Tensor) -> Correction:
        """Restore faces without any sample: what the corrector knows from the bad face, seen as `see` returns it."""
        last = len(self.network.schedule) - 1
        nothing = seen.new_zeros(len(seen), 3, self.network.resolution, self.network.resolution)
        return self.network(nothing, torch.full((len(seen),), last, device=seen.device), seen)

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
                " choose another with --option stride=N, or use --corrector none"
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
    name = read_json(folder / "config.json").get("_class_name")
    if name not in _NETWORKS:
        raise WeightsError(f"{folder}: holds a {name}, not a corrector ({' or '.join(_NETWORKS)})")
    network = load_network(weights, _NETWORKS[name])
    assert isinstance(network, CorrectorNetwork)  # noqa: S101 - load_network returns the class it is given
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


def embedded_corrector_for(prior: Prior) -> Corrector | None:
    """Return the embedded corrector that serves a prior's resolution and schedule, if there is one.

    Of several, one under the prior's own licence: what is free stays so.
    """
    fitting = [
        card
        for card in embedded_cards("corrector").values()
        if card.resolution == prior.resolution
        and NoiseSchedule.from_scheduler_config(card.schedule).equals(prior.schedule)
    ]
    best = min(fitting, key=lambda card: card.licence != prior.card.licence, default=None)
    return load_corrector(best.name) if best else None
