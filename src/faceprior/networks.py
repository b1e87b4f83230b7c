"""What our networks are made of: a configuration that is saved with them, and a residual U-Net without norms."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

_EMBEDDING = 128  # channels of the time embedding
_GRID_COHERENCE = 64  # π times the pixels over which a grid is alike: 20


class ConfiguredNetwork(nn.Module):
    """A network that knows what it was made with, as `config.json` beside its weights has it.

    diffusers' models do so, too, but take seconds to import; `faceprior.diffusers` has ours as such.
    """

    loaded_from: str = ""
    _config: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """What it was made with, by name, and as `_name_or_path` the folder that it was loaded from, if any."""
        return {**self._config, **({"_name_or_path": self.loaded_from} if self.loaded_from else {})}

    @property
    def dtype(self) -> torch.dtype:
        """Number format of its parameters."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where its parameters lie."""
        return next(self.parameters()).device


def keep_config(init: Callable[..., None]) -> Callable[..., None]:
    """Let `__init__` of a `ConfiguredNetwork` keep its arguments and defaults as `config`."""
    signature = inspect.signature(init)

    @wraps(init)
    def init_and_keep(self: ConfiguredNetwork, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        init(self, *args, **kwargs)
        self._config = dict(list(bound.arguments.items())[1:])  # without self

    return init_and_keep


def without_grid(images: torch.Tensor) -> torch.Tensor:
    """Halve what repeats every two pixels alike over some twenty: the trace of a pixel-unshuffle by 2.

    Each of its four phases has an error of its own, which stands in the picture as a grid. Pictures have next to
    nothing there, so that the filter, a dip around the Nyquist frequency of rows and columns, costs them none.

    Args:
        images: (B, C, R, R), float32.
    """
    filtering = _grid_filter(images.shape[-1], images.device)
    return filtering @ images @ filtering.T


@lru_cache(maxsize=8)
@torch.inference_mode(mode=False)  # a tensor of that mode, kept, would later stop gradients with an error
def _grid_filter(side: int, device: torch.device) -> torch.Tensor:
    """The filter of one direction, (R, R): a discrete cosine transform, its gains and the way back."""
    cosines = cosine_transform(side)
    away = (side - torch.arange(side, dtype=torch.float64)) / side * _GRID_COHERENCE  # of the Nyquist frequency
    gains = 1 - 0.5 * torch.exp(-away.square() / 2)
    return (cosines.T * gains @ cosines).float().to(device)


def cosine_transform(side: int) -> torch.Tensor:
    """The orthonormal discrete cosine transform of one direction, (R, R), float64: row f has f/2 cycles a picture."""
    frequency, place = torch.arange(side, dtype=torch.float64), torch.arange(side, dtype=torch.float64) + 0.5
    cosines = torch.cos(torch.pi / side * frequency[:, None] * place) * math.sqrt(2 / side)
    cosines[0] /= math.sqrt(2)
    return cosines


class Conv3x3(nn.Module):
    """A 3×3 convolution whose weight is a matrix (out, 9 · in), as Muon wants it, laid out as channels_last.

    Args:
        channels_in: input channels.
        channels_out: output channels.
        zero: start at 0 rather than at random.
    """

    def __init__(self, channels_in: int, channels_out: int, *, zero: bool = False) -> None:
        super().__init__()
        weight = torch.zeros(channels_out, 9 * channels_in)
        if not zero:
            nn.init.normal_(weight, std=(9 * channels_in) ** -0.5)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(channels_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in, H, W) → (B, out, H, W)."""
        weight = self.weight.view(len(self.bias), 3, 3, -1).permute(0, 3, 1, 2)
        return F.conv2d(x, weight, self.bias, padding=1)


class Block(nn.Module):
    """x + conv(silu((1 + a_t) · conv(silu(x)) + b_t)); starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = Conv3x3(channels, channels), Conv3x3(channels, channels, zero=True)
        self.modulation = nn.Linear(_EMBEDDING, 2 * channels)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) and (B, E) → (B, C, H, W)."""
        scale, shift = self.modulation(embedding)[..., None, None].chunk(2, dim=1)
        hidden = torch.addcmul(shift, self.first(F.silu(x)), 1 + scale)
        return x + self.second(F.silu(hidden))


class ResidualUNet(nn.Module):
    """A U-Net of residual blocks without norms or attention, conditioned on the step t.

    Group norms cost a third of a training step and bring nothing at this depth: residual branches start at 0 and the
    inner convolutions are trained by Muon, which bounds their growth.

    Args:
        channels_in: input channels.
        channels_out: output channels; the output starts at 0.
        widths: channels of each level; a level has half the side of the one before.
        blocks: residual blocks of each level, on the way down and again on the way up.
    """

    def __init__(self, channels_in: int, channels_out: int, widths: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        if len(widths) != len(blocks) or not widths:
            raise ValueError(
                f"widths {list(widths)} and blocks {list(blocks)} must name the same levels, at least one"
            )
        pairs = list(pairwise(widths))
        self.embed = nn.Sequential(
            nn.Linear(_EMBEDDING, _EMBEDDING), nn.SiLU(), nn.Linear(_EMBEDDING, _EMBEDDING), nn.SiLU()
        )
        self.conv_in = Conv3x3(channels_in, widths[0])
        self.down = nn.ModuleList(_level(*level) for level in zip(widths, blocks, strict=True))
        self.reduce = nn.ModuleList(nn.Conv2d(4 * upper, lower, 1) for upper, lower in pairs)
        self.enlarge = nn.ModuleList(nn.Conv2d(lower, 4 * upper, 1) for upper, lower in pairs)
        self.up = nn.ModuleList(_level(*level) for level in zip(widths, blocks, strict=True))
        self.conv_out = Conv3x3(widths[0], channels_out, zero=True)

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.conv_in.weight.dtype

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Compute the residual.

        Args:
            x: (B, channels_in, H, W); H and W divisible by 2^(levels − 1).
            t: steps, (B,).

        Returns:
            (B, channels_out, H, W).
        """
        embedding = self.embed(sinusoids(t, _EMBEDDING).to(x.dtype))
        x = self.conv_in(x)
        kept = []
        for level, down in enumerate(self.down):
            if level:
                x = self.reduce[level - 1](F.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last))
            for block in down:  # type: ignore[attr-defined]
                x = block(x, embedding)
            kept.append(x)
        for level in reversed(range(len(self.up))):
            for block in self.up[level]:  # type: ignore[attr-defined]
                x = block(x, embedding)
            if level:
                enlarged = F.pixel_shuffle(self.enlarge[level - 1](x), 2)
                x = enlarged.contiguous(memory_format=torch.channels_last) + kept[level - 1]
        return self.conv_out(F.silu(x))


def inner_matrices(network: nn.Module) -> list[nn.Parameter]:
    """Return the weights that Muon trains, in a fixed order: the convolutions inside the residual blocks."""
    blocks = [module for module in network.modules() if isinstance(module, Block)]
    return [convolution.weight for block in blocks for convolution in (block.first, block.second)]


def sinusoids(t: torch.Tensor, channels: int) -> torch.Tensor:
    """Sines and cosines of steps t (B,) at log-spaced frequencies (Vaswani et al. 2017): (B, channels)."""
    half = channels // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32, device=t.device) * (-math.log(10_000) / half))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _level(width: int, blocks: int) -> nn.ModuleList:
    return nn.ModuleList(Block(width) for _ in range(blocks))
