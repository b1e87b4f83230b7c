"""ADM (openai guided-diffusion) checkpoints, converted exactly to a diffusers `UNet2DModel`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from diffusers import UNet2DModel
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from faceprior.errors import WeightsError
from faceprior.priors.adapter import Prior
from faceprior.priors.card import ModelCard, file_sha256
from faceprior.priors.checkpoint import key_faults, named, read_state_dict
from faceprior.priors.noise_schedule import ddim_scheduler_config
from faceprior.settings import load_settings

_GROUPS = 32  # of every group norm of ADM
_DEFAULT_MULT: dict[int, tuple[float, ...]] = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
}
_IGNORED_FLAGS = {  # they change training, sampling or speed, not what the network computes
    *("batch_size", "clip_denoised", "dropout", "model_path", "num_samples", "rescale_learned_sigmas"),
    *("sigma_small", "timestep_respacing", "use_checkpoint", "use_ddim", "use_fp16", "use_kl"),
}

# What a parameter of `UNet2DModel` is called in a checkpoint: the first rule that fits names its module, `_LAYERS`
# its layer. guided-diffusion counts the blocks of each half through, diffusers those of a level: see `_adm_key`.
_MODULES = {
    r"time_embedding\.linear_1\.": "time_embed.0.",
    r"time_embedding\.linear_2\.": "time_embed.2.",
    r"conv_in\.": "input_blocks.0.0.",
    r"down_blocks\.(\d+)\.resnets\.(\d+)\.": "input_blocks.{down}.0.",
    r"down_blocks\.(\d+)\.attentions\.(\d+)\.": "input_blocks.{down}.1.",
    r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.": "input_blocks.{downsampler}.0.op.",
    r"down_blocks\.(\d+)\.downsamplers\.0\.": "input_blocks.{downsampler}.0.",
    r"mid_block\.resnets\.0\.": "middle_block.0.",
    r"mid_block\.attentions\.0\.": "middle_block.1.",
    r"mid_block\.resnets\.1\.": "middle_block.2.",
    r"up_blocks\.(\d+)\.resnets\.(\d+)\.": "output_blocks.{up}.0.",
    r"up_blocks\.(\d+)\.attentions\.(\d+)\.": "output_blocks.{up}.1.",
    r"up_blocks\.(\d+)\.upsamplers\.0\.": "output_blocks.{upsampler}.{last}.",
    r"conv_norm_out\.": "out.0.",
    r"conv_out\.": "out.2.",
}
_LAYERS = {
    # of a residual block
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
    # of an attention; its query, key and value are one tensor
    "group_norm": "norm",
    "to_q": "qkv",
    "to_k": "qkv",
    "to_v": "qkv",
    "to_out.0": "proj_out",
}
_CONV1D = ("qkv.weight", "proj_out.weight")  # (out, in, 1); Linear in diffusers: (out, in)


def _numbers(value: Any) -> Any:
    """16, "32,16,8", "" or [32, 16, 8] as a tuple."""
    parts = value.split(",") if isinstance(value, str) and value.strip() else value or ()
    try:
        return tuple(float(part) for part in (parts if isinstance(parts, list | tuple) else (parts,)))
    except (TypeError, ValueError) as error:
        raise ValueError("give numbers, such as 4,2,1") from error


Numbers = Annotated[tuple[float, ...], BeforeValidator(_numbers)]


class ADMConfig(BaseModel):
    """The guided-diffusion flags that decide what a network computes; the defaults are `ffhq_10m.pt`'s.

    Lists may be written as guided-diffusion does ("1,2,3,4"). Flags that do not change the network (dropout,
    use_fp16, …) are passed over. Some can have one value alone: a prior is unconditional and predicts epsilon, and
    `UNet2DModel` resamples by convolution, has the same heads on both sides, and takes steps as they are.

    Attributes:
        image_size: side R of the images, in pixels.
        num_channels: width of the top level, a multiple of 32.
        num_res_blocks: residual blocks a level on the way down.
        channel_mult: width of each level as a multiple of num_channels, starting with 1; empty takes
            guided-diffusion's default for image_size (known for 64, 128, 256).
        attention_resolutions: sides, in pixels, of the feature maps with self-attention; the middle block
            always has it.
        num_heads: attention heads; used only if num_head_channels is -1.
        num_head_channels: channels of an attention head; -1 for a fixed number of heads.
        use_new_attention_order: q, k and v are split before the heads rather than inside each head.
        use_scale_shift_norm: the step scales and shifts each residual block, rather than only shifting it.
        resblock_updown: residual blocks resample, rather than plain convolutions.
        learn_sigma: the network has three more outputs, for a learned-range variance.
        diffusion_steps: T of the noise schedule.
        noise_schedule: "linear" (1e-4 … 0.02 at T = 1000, scaled with 1000 / T) or "cosine".
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)

    image_size: int = Field(256, ge=1)
    num_channels: int = Field(128, ge=1)
    num_res_blocks: int = Field(1, ge=1)
    channel_mult: Numbers = ()
    attention_resolutions: Numbers = (16,)
    num_heads: int = Field(4, ge=1)
    num_head_channels: int = Field(64, ge=-1)
    use_new_attention_order: bool = False
    use_scale_shift_norm: bool = True
    resblock_updown: bool = True
    learn_sigma: bool = True
    diffusion_steps: int = Field(1000, gt=20)  # below, the scaled linear β would reach 1
    noise_schedule: Literal["linear", "cosine"] = "linear"
    class_cond: Literal[False] = False
    conv_resample: Literal[True] = True
    num_heads_upsample: Literal[-1] = -1
    predict_xstart: Literal[False] = False
    rescale_timesteps: Literal[False] = False

    @property
    def block_out_channels(self) -> tuple[int, ...]:
        """Width of each level, from the full resolution downwards."""
        return tuple(int(self.num_channels * multiple) for multiple in self.channel_mult)

    @property
    def has_attention(self) -> tuple[bool, ...]:
        """Whether each level has self-attention."""
        sides = (self.image_size >> level for level in range(len(self.channel_mult)))
        return tuple(side in self.attention_resolutions for side in sides)

    @property
    def attention_head_dim(self) -> int:
        """Channels of an attention head."""
        by_count = self.num_head_channels == -1
        return self.block_out_channels[-1] // self.num_heads if by_count else self.num_head_channels

    @model_validator(mode="before")
    @classmethod
    def _without_ignored(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if name not in _IGNORED_FLAGS}

    @field_validator("channel_mult")
    @classmethod
    def _levels(cls, value: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        side, channels = info.data.get("image_size", 256), info.data.get("num_channels", 128)
        levels = value or _DEFAULT_MULT.get(side, ())
        if not levels:
            raise ValueError(f"image_size {side} has no default: give it")
        if levels[0] != 1:
            raise ValueError("it must start with 1: UNet2DModel embeds the step as wide as its top level")
        if any(multiple <= 0 or channels * multiple % _GROUPS for multiple in levels):
            raise ValueError(f"times num_channels {channels} every level must be a multiple of {_GROUPS} wide")
        if side % 2 ** (len(levels) - 1):
            raise ValueError(f"image_size {side} cannot be halved {len(levels) - 1} times")
        return levels

    @field_validator("attention_resolutions")
    @classmethod
    def _sides(cls, value: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        side = info.data.get("image_size", 256)
        if any(own < 1 or side % own for own in value):
            raise ValueError(f"each must divide image_size {side}")
        return value

    @model_validator(mode="after")
    def _heads(self) -> ADMConfig:
        levels = zip(self.block_out_channels, self.has_attention, strict=True)
        widths = sorted({self.block_out_channels[-1]} | {width for width, attends in levels if attends})
        by_count = self.num_head_channels == -1
        name, divisor = ("num_heads", self.num_heads) if by_count else ("num_head_channels", self.num_head_channels)
        if by_count and len(widths) > 1:
            raise ValueError(
                f"num_heads {divisor} with attention on {', '.join(map(str, widths))} channels means heads of several"
                " sizes, which UNet2DModel cannot have; give num_head_channels, or attention on levels of one width"
            )
        if any(divisor < 1 or width % divisor for width in widths):
            raise ValueError(
                f"{name} {divisor} does not divide {', '.join(map(str, widths))}, the widths with attention"
            )
        return self


def load_adm_checkpoint(path: Path, config_path: Path | None = None) -> Prior:
    """Load a guided-diffusion checkpoint (`read_state_dict`) as a prior, in float32 on the CPU.

    Args:
        path: the checkpoint.
        config_path: JSON or YAML file of its flags (`ADMConfig`); None: those of `ffhq_10m.pt`.

    Raises:
        WeightsError: the file cannot be read, is not safe to load, or a key or shape does not fit the flags.
            The message names the file and the checkpoint's own keys.
        OptionError: the flags cannot be read or are not supported.
    """
    config = load_settings(ADMConfig, config_path, {})
    state = read_state_dict(path)
    with torch.device("meta"):
        network = build_unet(config)
    network.load_state_dict(_convert(path, state, config, network), strict=True, assign=True)
    card = ModelCard(
        kind="prior",
        name=path.stem,
        resolution=config.image_size,
        sha256=file_sha256(path),
        schedule=ddim_scheduler_config(_schedule(config), "epsilon"),
        source=path.name,
    )
    network.eval().requires_grad_(requires_grad=False)
    return Prior(network, card)


def build_unet(config: ADMConfig) -> UNet2DModel:
    """Return an untrained `UNet2DModel` that computes what guided-diffusion's `UNetModel` does."""
    if config.resblock_updown:
        down, up, resampling = "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D", "resnet"
    else:
        down, up, resampling = "DownBlock2D", "UpBlock2D", "conv"
    return UNet2DModel(
        sample_size=config.image_size,
        in_channels=3,
        out_channels=6 if config.learn_sigma else 3,
        layers_per_block=config.num_res_blocks,
        block_out_channels=config.block_out_channels,
        down_block_types=tuple("AttnDownBlock2D" if attends else down for attends in config.has_attention),
        up_block_types=tuple("AttnUpBlock2D" if attends else up for attends in reversed(config.has_attention)),
        downsample_type=resampling,  # of the blocks with attention
        upsample_type=resampling,
        resnet_time_scale_shift="scale_shift" if config.use_scale_shift_norm else "default",
        attention_head_dim=config.attention_head_dim,
        norm_num_groups=_GROUPS,
        attn_norm_num_groups=_GROUPS,  # without it a scale_shift middle block has no attention norm
        norm_eps=1e-5,
        flip_sin_to_cos=True,
        freq_shift=0,
    )


def _adm_key(parameter: str, config: ADMConfig) -> str:
    """Name a parameter of the `UNet2DModel` as the checkpoint does."""
    for pattern, module in _MODULES.items():
        if found := re.match(pattern, parameter):
            level, layer = (*map(int, found.groups()), 0, 0)[:2]
            attends = config.has_attention[::-1][level]
            first = level * (config.num_res_blocks + 1)  # a level has one block more: a resampler, or a skip's
            places = {
                "down": 1 + first + layer,
                "downsampler": 1 + first + config.num_res_blocks,
                "up": first + layer,
                "upsampler": first + config.num_res_blocks,
                "last": 2 if attends else 1,  # it closes the level's last block
            }
            layer_name, _, kind = parameter[found.end() :].rpartition(".")
            own = _LAYERS.get(layer_name, layer_name)
            return module.format(**places) + (f"{own}.{kind}" if own else kind)
    raise LookupError(parameter)


def _convert(
    path: Path, state: Mapping[str, torch.Tensor], config: ADMConfig, network: UNet2DModel
) -> dict[str, torch.Tensor]:
    shapes = {name: tuple(parameter.shape) for name, parameter in network.state_dict().items()}
    parameters: dict[str, list[str]] = {}  # by the checkpoint's own keys
    for name in shapes:
        parameters.setdefault(_adm_key(name, config), []).append(name)
    wanted = {}
    for key, names in parameters.items():
        first, *rest = shapes[names[0]]
        wanted[key] = (first * len(names), *rest, *((1,) if key.endswith(_CONV1D) else ()))
    if not state.keys() & wanted.keys():
        raise WeightsError(
            f"{path}: is not an ADM (guided-diffusion) checkpoint: its first key is {next(iter(state))} and"
            f" it has no {next(iter(wanted))}; to load a diffusers model, name its folder"
        )
    if wrong := named(key_faults(state, wanted)):
        raise WeightsError(
            f"{path}: {wrong}; the checkpoint does not fit the flags: name a config file of those that it was"
            " trained with"
        )
    converted: dict[str, torch.Tensor] = {}
    for key, names in parameters.items():
        tensor = state[key].detach().float()
        parts = (tensor,) if len(names) == 1 else _split_qkv(tensor, config)
        converted |= {name: part.reshape(shapes[name]) for name, part in zip(names, parts, strict=True)}
    return converted


def _split_qkv(qkv: torch.Tensor, config: ADMConfig) -> tuple[torch.Tensor, ...]:
    if not config.use_new_attention_order:  # the legacy order keeps q, k and v of each head together
        per_head = qkv.reshape(-1, 3, config.attention_head_dim, *qkv.shape[1:])  # (heads, 3, head_dim, …)
        qkv = per_head.transpose(0, 1).flatten(0, 2)
    return qkv.chunk(3)


def _schedule(config: ADMConfig) -> dict[str, Any]:
    steps, learned = config.diffusion_steps, {"variance_type": "learned_range"} if config.learn_sigma else {}
    if config.noise_schedule == "cosine":
        return {"num_train_timesteps": steps, "beta_schedule": "squaredcos_cap_v2", **learned}
    # guided-diffusion keeps the total noise when T is not 1000
    return {"num_train_timesteps": steps, "beta_start": 0.1 / steps, "beta_end": 20 / steps, **learned}
