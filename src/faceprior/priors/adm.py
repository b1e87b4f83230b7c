"""ADM (openai guided-diffusion) checkpoints, converted exactly to a diffusers `UNet2DModel`."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import yaml
from diffusers import UNet2DModel

from faceprior.errors import OptionError, WeightsError
from faceprior.priors.adapter import Prior
from faceprior.priors.card import ModelCard, file_sha256
from faceprior.priors.noise_schedule import NoiseSchedule, ddim_scheduler_config

if TYPE_CHECKING:
    from pathlib import Path

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
_ONLY_VALUE: dict[str, tuple[Any, str]] = {
    "class_cond": (False, "a prior is unconditional"),
    "conv_resample": (True, "resampling without a convolution has no counterpart in UNet2DModel"),
    "num_heads_upsample": (-1, "UNet2DModel has the same heads on both sides"),
    "predict_xstart": (False, "the network must predict epsilon"),
    "rescale_timesteps": (False, "the network must take the steps as they are"),
}

# ADM's layers inside a module, and those that take their place in diffusers.
_SINGLE = {"": ("",)}
_RESNET = {
    ".in_layers.0": (".norm1",),
    ".in_layers.2": (".conv1",),
    ".emb_layers.1": (".time_emb_proj",),
    ".out_layers.0": (".norm2",),
    ".out_layers.3": (".conv2",),
    ".skip_connection": (".conv_shortcut",),
}
_ATTENTION = {".norm": (".group_norm",), ".qkv": (".to_q", ".to_k", ".to_v"), ".proj_out": (".to_out.0",)}

_Layers = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class ADMConfig:
    """The guided-diffusion flags that decide what a network computes; the defaults are `ffhq_10m.pt`'s.

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

    Raises:
        OptionError: a value is out of its range, or `UNet2DModel` cannot be that network.
    """

    image_size: int = 256
    num_channels: int = 128
    num_res_blocks: int = 1
    channel_mult: tuple[float, ...] = ()
    attention_resolutions: tuple[int, ...] = (16,)
    num_heads: int = 4
    num_head_channels: int = 64
    use_new_attention_order: bool = False
    use_scale_shift_norm: bool = True
    resblock_updown: bool = True
    learn_sigma: bool = True
    diffusion_steps: int = 1000
    noise_schedule: Literal["linear", "cosine"] = "linear"

    def __post_init__(self) -> None:
        self._check_scalars()
        if not self.channel_mult:
            if self.image_size not in _DEFAULT_MULT:
                raise OptionError(f"channel_mult is empty and image_size {self.image_size} has no default: give it")
            object.__setattr__(self, "channel_mult", _DEFAULT_MULT[self.image_size])
        self._check_levels()
        self._check_attention()

    @classmethod
    def from_file(cls, path: Path) -> ADMConfig:
        """Read the flags from a JSON (`.json`) or YAML file, named as guided-diffusion names them.

        Lists may be written as guided-diffusion does ("1,2,3,4"). Flags that do not change the network
        (dropout, use_fp16, …) are passed over; flags that are left out have the values of `ffhq_10m.pt`.

        Raises:
            OptionError: the file cannot be read, a flag is unknown, or a value is not supported. The message
                names the file and the flag.
        """
        values = _read_mapping(path)
        known = {f.name for f in fields(cls)}
        if unknown := sorted(str(key) for key in set(values) - known - _IGNORED_FLAGS - set(_ONLY_VALUE)):
            raise OptionError(f"{path}: unknown flags {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        for name, (only, reason) in _ONLY_VALUE.items():
            if values.get(name, only) != only:
                raise OptionError(f"{path}: {name} is {values[name]!r}; only {only} is supported: {reason}")
        try:
            for name in {"channel_mult", "attention_resolutions"} & set(values):
                values[name] = _parse_numbers(name, values[name])
            return cls(**{name: value for name, value in values.items() if name in known})
        except OptionError as error:
            raise OptionError(f"{path}: {error}") from error

    @property
    def block_out_channels(self) -> tuple[int, ...]:
        """Width of each level, from the full resolution downwards."""
        return tuple(int(self.num_channels * multiple) for multiple in self.channel_mult)

    @property
    def has_attention(self) -> tuple[bool, ...]:
        """Whether each level has self-attention."""
        return tuple(
            self.image_size >> level in self.attention_resolutions for level in range(len(self.channel_mult))
        )

    @property
    def attention_head_dim(self) -> int:
        """Channels of an attention head."""
        if self.num_head_channels != -1:
            return self.num_head_channels
        return self.block_out_channels[-1] // self.num_heads

    def _check_scalars(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            if kind in (bool, int) and type(value) is not kind:
                wanted = "true or false" if kind is bool else "an integer"
                raise OptionError(f"{field.name} is {value!r}; it must be {wanted}")
        for name in ("image_size", "num_channels", "num_res_blocks", "num_heads"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.num_head_channels != -1 and self.num_head_channels < 1:
            raise OptionError(f"num_head_channels is {self.num_head_channels}; it must be at least 1, or -1")
        if self.noise_schedule not in ("linear", "cosine"):
            raise OptionError(f"noise_schedule is {self.noise_schedule!r}; choose linear or cosine")
        if self.diffusion_steps <= 20:  # the scaled linear β would reach 1
            raise OptionError(f"diffusion_steps is {self.diffusion_steps}; it must be above 20")

    def _check_levels(self) -> None:
        if self.channel_mult[0] != 1:
            raise OptionError(
                f"channel_mult starts with {self.channel_mult[0]:g}; only 1 is supported:"
                " UNet2DModel embeds the step as wide as its top level"
            )
        for multiple in self.channel_mult:
            width = self.num_channels * multiple
            if width <= 0 or width % _GROUPS:
                raise OptionError(
                    f"num_channels {self.num_channels} times channel_mult {multiple:g} is {width:g};"
                    f" the width of a level must be a multiple of {_GROUPS}"
                )
        if self.image_size % (2 ** (len(self.channel_mult) - 1)):
            raise OptionError(f"image_size {self.image_size} cannot be halved {len(self.channel_mult) - 1} times")

    def _check_attention(self) -> None:
        for side in self.attention_resolutions:
            if side < 1 or self.image_size % side:
                raise OptionError(
                    f"attention_resolutions has {side}, which does not divide image_size {self.image_size}"
                )
        levels = zip(self.block_out_channels, self.has_attention, strict=True)
        widths = sorted({self.block_out_channels[-1]} | {width for width, attends in levels if attends})
        by_count = self.num_head_channels == -1
        name, divisor = ("num_heads", self.num_heads) if by_count else ("num_head_channels", self.num_head_channels)
        if by_count and len(widths) > 1:
            raise OptionError(
                f"num_heads {self.num_heads} with attention on {', '.join(map(str, widths))} channels means"
                " heads of several sizes, which UNet2DModel cannot have; only a fixed num_head_channels, or"
                " attention on levels of one width, is supported"
            )
        for width in widths:
            if width % divisor:
                raise OptionError(f"{name} {divisor} does not divide the {width} channels of a level with attention")


def load_adm_checkpoint(path: Path, config_path: Path | None = None) -> Prior:
    """Load a guided-diffusion checkpoint as a prior, in float32 on the CPU.

    A pickle is read without running any code in it.

    Args:
        path: a state dict, plain or in one wrapper ("state_dict", "model", "ema"), as `.safetensors` or as
            `torch.save` writes it.
        config_path: JSON or YAML file of its flags (see `ADMConfig.from_file`); None: those of `ffhq_10m.pt`.

    Raises:
        WeightsError: the file cannot be read, is not safe to load, or a key or shape does not fit the flags.
            The message names the file and the checkpoint's own keys.
        OptionError: the flags cannot be read or are not supported.
    """
    config = ADMConfig() if config_path is None else ADMConfig.from_file(config_path)
    state = _state_dict(path, _read_checkpoint(path))
    with torch.device("meta"):
        network = build_unet(config)
    network.load_state_dict(_convert(path, state, config, network), strict=True, assign=True)
    schedule = ddim_scheduler_config(_schedule(config), "epsilon")
    card = ModelCard(
        kind="prior",
        name=path.stem,
        resolution=config.image_size,
        sha256=file_sha256(path),
        schedule=schedule,
        prediction_type="epsilon",
        source=path.name,
    )
    network.eval().requires_grad_(requires_grad=False)
    return Prior(network, NoiseSchedule.from_scheduler_config(schedule), "epsilon", card)


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


class _Target(NamedTuple):
    """What a tensor of the checkpoint must be, and which parameters of the `UNet2DModel` it becomes."""

    shape: tuple[int, ...]
    parameters: tuple[str, ...]


def _modules(config: ADMConfig) -> Iterator[tuple[str, str, _Layers]]:
    """Name each module in ADM and in diffusers, and how its layers correspond."""
    yield "time_embed.0", "time_embedding.linear_1", _SINGLE
    yield "time_embed.2", "time_embedding.linear_2", _SINGLE
    yield "input_blocks.0.0", "conv_in", _SINGLE
    block, last = 1, len(config.channel_mult) - 1
    for level, attends in enumerate(config.has_attention):
        for layer in range(config.num_res_blocks):
            yield f"input_blocks.{block}.0", f"down_blocks.{level}.resnets.{layer}", _RESNET
            if attends:
                yield f"input_blocks.{block}.1", f"down_blocks.{level}.attentions.{layer}", _ATTENTION
            block += 1
        if level < last:
            yield _resampler(config, f"input_blocks.{block}.0", f"down_blocks.{level}.downsamplers.0", "op")
            block += 1
    yield "middle_block.0", "mid_block.resnets.0", _RESNET
    yield "middle_block.1", "mid_block.attentions.0", _ATTENTION
    yield "middle_block.2", "mid_block.resnets.1", _RESNET
    block = 0
    for level, attends in enumerate(reversed(config.has_attention)):
        for layer in range(config.num_res_blocks + 1):
            yield f"output_blocks.{block}.0", f"up_blocks.{level}.resnets.{layer}", _RESNET
            if attends:
                yield f"output_blocks.{block}.1", f"up_blocks.{level}.attentions.{layer}", _ATTENTION
            block += 1
        if level < last:  # ADM's upsampler closes the level's last block
            place = f"output_blocks.{block - 1}.{2 if attends else 1}"
            yield _resampler(config, place, f"up_blocks.{level}.upsamplers.0", "conv")
    yield "out.0", "conv_norm_out", _SINGLE
    yield "out.2", "conv_out", _SINGLE


def _resampler(config: ADMConfig, adm: str, unet: str, convolution: str) -> tuple[str, str, _Layers]:
    if config.resblock_updown:
        return adm, unet, _RESNET
    return f"{adm}.{convolution}", f"{unet}.conv", _SINGLE


def _targets(config: ADMConfig, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, _Target]:
    """Say what the checkpoint must hold, by its own keys, to fill parameters of these shapes."""
    targets = {}
    for adm, unet, layers in _modules(config):
        for adm_layer, unet_layers in layers.items():
            for kind in ("weight", "bias"):
                parameters = tuple(f"{unet}{layer}.{kind}" for layer in unet_layers)
                if parameters[0] not in shapes:
                    continue  # a skip connection between equal widths is the identity
                first, *rest = shapes[parameters[0]]
                if kind == "weight" and adm_layer in (".qkv", ".proj_out"):
                    rest.append(1)  # Conv1d in ADM, Linear in diffusers
                targets[f"{adm}{adm_layer}.{kind}"] = _Target((first * len(parameters), *rest), parameters)
    return targets


def _convert(
    path: Path, state: Mapping[str, torch.Tensor], config: ADMConfig, network: UNet2DModel
) -> dict[str, torch.Tensor]:
    shapes = {name: tuple(parameter.shape) for name, parameter in network.state_dict().items()}
    targets = _targets(config, shapes)
    _check_fit(path, state, targets)
    converted: dict[str, torch.Tensor] = {}
    for key, (_, parameters) in targets.items():
        tensor = state[key].detach().float()
        parts = (tensor,) if len(parameters) == 1 else _split_qkv(tensor, config)
        for parameter, part in zip(parameters, parts, strict=True):
            converted[parameter] = part.reshape(shapes[parameter])
    return converted


def _split_qkv(qkv: torch.Tensor, config: ADMConfig) -> tuple[torch.Tensor, ...]:
    if not config.use_new_attention_order:  # the legacy order keeps q, k and v of each head together
        per_head = qkv.reshape(-1, 3, config.attention_head_dim, *qkv.shape[1:])  # (heads, 3, head_dim, …)
        qkv = per_head.transpose(0, 1).flatten(0, 2)
    return qkv.chunk(3)


def _check_fit(path: Path, state: Mapping[str, torch.Tensor], targets: Mapping[str, _Target]) -> None:
    if not state.keys() & targets.keys():
        raise WeightsError(
            f"{path}: is not an ADM (guided-diffusion) checkpoint: its first key is {next(iter(state))} and"
            f" it has no {next(iter(targets))}; to load a diffusers model, name its folder"
        )
    faults = {
        "missing keys": [key for key in targets if key not in state],
        "unexpected keys": [key for key in state if key not in targets],
        "misshapen keys": [
            f"{key} {tuple(state[key].shape)} instead of {target.shape}"
            for key, target in targets.items()
            if key in state and tuple(state[key].shape) != target.shape
        ],
    }
    if any(faults.values()):
        named = "; ".join(f"{fault}: {_first_few(keys)}" for fault, keys in faults.items() if keys)
        raise WeightsError(
            f"{path}: {named}; the checkpoint does not fit the flags:"
            " name a config file of those that it was trained with"
        )


def _first_few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _read_checkpoint(path: Path) -> Any:
    if not path.is_file():
        raise WeightsError(f"{path}: is not a file; name an ADM checkpoint")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises nearly anything
        if isinstance(error, pickle.UnpicklingError):
            raise WeightsError(
                f"{path}: is no plain checkpoint: it holds Python code or objects beside tensors, or is"
                " another kind of file; nothing in it was run; if you trust it, save its state dict alone,"
                " as .safetensors"
            ) from error
        raise WeightsError(
            f"{path}: cannot be read as a checkpoint ({type(error).__name__}): it is damaged, incomplete or"
            " another kind of file; get it again"
        ) from error


def _state_dict(path: Path, loaded: Any) -> dict[str, torch.Tensor]:
    if isinstance(loaded, Mapping) and not _is_state_dict(loaded):
        wrapped = [name for name, value in loaded.items() if _is_state_dict(value)]
        if len(wrapped) > 1:
            raise WeightsError(
                f"{path}: holds several networks ({', '.join(map(str, wrapped))}); save the one to use alone"
            )
        loaded = loaded[wrapped[0]] if wrapped else None
    if not _is_state_dict(loaded):
        raise WeightsError(f"{path}: holds no state dict (names and tensors); save the network's state dict alone")
    prefix = "module."  # of torch's DataParallel
    if all(key.startswith(prefix) for key in loaded):
        return {key.removeprefix(prefix): tensor for key, tensor in loaded.items()}
    return dict(loaded)


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(key, str) and isinstance(tensor, torch.Tensor) for key, tensor in value.items())
    )


def _schedule(config: ADMConfig) -> dict[str, Any]:
    schedule: dict[str, Any] = {"num_train_timesteps": config.diffusion_steps}
    if config.noise_schedule == "cosine":
        schedule["beta_schedule"] = "squaredcos_cap_v2"
    else:  # guided-diffusion keeps the total noise when T is not 1000
        schedule["beta_start"] = 1e-4 * 1000 / config.diffusion_steps
        schedule["beta_end"] = 0.02 * 1000 / config.diffusion_steps
    if config.learn_sigma:
        schedule["variance_type"] = "learned_range"
    return schedule


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise OptionError(f"{path}: cannot be read as flags ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise OptionError(f"{path}: is not a mapping of guided-diffusion flags to values")
    return values


def _parse_numbers(name: str, value: Any) -> tuple[float, ...]:
    """Read 16, "32,16,8", "" or [32, 16, 8]; whole numbers become int."""
    parts = value.split(",") if isinstance(value, str) and value.strip() else value or []
    try:
        numbers = [float(part) for part in (parts if isinstance(parts, list) else [parts])]
        return tuple(int(number) if number == int(number) else number for number in numbers)
    except (TypeError, ValueError, OverflowError) as error:
        raise OptionError(f"{name} is {value!r}; give numbers, such as 4,2,1") from error
