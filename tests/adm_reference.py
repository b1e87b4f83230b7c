"""The network of guided-diffusion's checkpoints in plain torch, written for the tests from its structure.

It shares nothing with faceprior or diffusers, so a converter that is wrong about it disagrees with it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn


def norm(channels):
    return nn.GroupNorm(32, channels)


class ResBlock(nn.Module):
    def __init__(self, in_channels, emb_channels, out_channels, *, scale_shift, resample=None):
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.in_layers = nn.Sequential(
            norm(in_channels), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, out_channels * (2 if scale_shift else 1)))
        self.out_layers = nn.Sequential(
            norm(out_channels),
            nn.SiLU(),
            nn.Dropout(0.1),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        same = in_channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x, emb):
        normalise, activate, convolve = self.in_layers
        h = activate(normalise(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = convolve(h)
        step = self.emb_layers(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = step.chunk(2, dim=1)
            h = self.out_layers[0](h) * (1 + scale) + shift
            h = self.out_layers[1:](h)
        else:
            h = self.out_layers(h + step)
        return self.skip_connection(x) + h


class AttentionBlock(nn.Module):
    def __init__(self, channels, heads, *, new_order):
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm = norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x, emb):
        batch, channels, height, width = x.shape
        flat = x.flatten(2)  # (B, C, T)
        qkv = self.qkv(self.norm(flat))
        head_dim = channels // self.heads
        if self.new_order:  # q of all heads, then k of all heads, then v
            q, k, v = (part.reshape(batch * self.heads, head_dim, -1) for part in qkv.chunk(3, dim=1))
        else:  # q, k, v of the first head, then of the second, ...
            q, k, v = qkv.reshape(batch * self.heads, 3 * head_dim, -1).split(head_dim, dim=1)
        weight = torch.einsum("bct,bcs->bts", q, k).div(math.sqrt(head_dim)).softmax(dim=-1)
        attended = torch.einsum("bts,bcs->bct", weight, v).reshape(batch, channels, -1)
        return (flat + self.proj_out(attended)).reshape(batch, channels, height, width)


class Downsample(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x, emb):
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, emb):
        return self.conv(double(x))


class Convolution(nn.Conv2d):
    def forward(self, x, emb):
        return super().forward(x)


class Stage(nn.Sequential):
    def forward(self, x, emb):
        for module in self:
            x = module(x, emb)
        return x


def halve(x):
    return F.avg_pool2d(x, 2)


def double(x):
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


class ADMUNet(nn.Module):
    """guided-diffusion's UNetModel; heads: number of heads, or None for heads of head_channels."""

    def __init__(
        self,
        image_size=256,
        channels=128,
        blocks=1,
        mult=(1, 1, 2, 2, 4, 4),
        attention=(16,),
        head_channels=64,
        heads=None,
        *,
        new_order=False,
        scale_shift=True,
        resblock_updown=True,
        learn_sigma=True,
    ):
        super().__init__()
        self.channels, self.scale_shift, self.resblock_updown = channels, scale_shift, resblock_updown
        self.head_channels, self.heads, self.new_order = head_channels, heads, new_order
        emb = 4 * channels
        self.time_embed = nn.Sequential(nn.Linear(channels, emb), nn.SiLU(), nn.Linear(emb, emb))
        levels = [(m * channels, image_size // 2**i in attention) for i, m in enumerate(mult)]
        skips = self._build_input(levels, blocks)
        c = skips[-1]
        self.middle_block = Stage(self._res(c, c), self._attention(c), self._res(c, c))
        self._build_output(levels, blocks, skips)
        c = channels * mult[0]
        self.out = nn.Sequential(norm(c), nn.SiLU(), nn.Conv2d(c, 6 if learn_sigma else 3, 3, padding=1))

    def _res(self, c_in, c_out, resample=None):
        return ResBlock(c_in, 4 * self.channels, c_out, scale_shift=self.scale_shift, resample=resample)

    def _attention(self, c):
        return AttentionBlock(c, self.heads or c // self.head_channels, new_order=self.new_order)

    def _build_input(self, levels, blocks):
        c = levels[0][0]
        self.input_blocks = nn.ModuleList([Stage(Convolution(3, c, 3, padding=1))])
        skips = [c]
        for level, (width, attends) in enumerate(levels):
            for _ in range(blocks):
                self.input_blocks.append(Stage(self._res(c, width), *([self._attention(width)] if attends else [])))
                c = width
                skips.append(c)
            if level < len(levels) - 1:
                self.input_blocks.append(Stage(self._res(c, c, halve) if self.resblock_updown else Downsample(c)))
                skips.append(c)
        return skips

    def _build_output(self, levels, blocks, skips):
        skips = list(skips)
        c = skips[-1]
        self.output_blocks = nn.ModuleList()
        for level, (width, attends) in reversed(list(enumerate(levels))):
            for i in range(blocks + 1):
                stage = Stage(self._res(c + skips.pop(), width), *([self._attention(width)] if attends else []))
                c = width
                if level and i == blocks:
                    stage.append(self._res(c, c, double) if self.resblock_updown else Upsample(c))
                self.output_blocks.append(stage)

    def forward(self, x, t):
        half = self.channels // 2
        angles = t[:, None].float() * torch.exp(-math.log(10000) * torch.arange(half) / half)
        steps = torch.cat([angles.cos(), angles.sin()], dim=1)  # of float32, whatever the network computes in
        emb = self.time_embed(steps.to(x.dtype))
        kept = []
        for stage in self.input_blocks:
            x = stage(x, emb)
            kept.append(x)
        x = self.middle_block(x, emb)
        for stage in self.output_blocks:
            x = stage(torch.cat([x, kept.pop()], dim=1), emb)
        return self.out(x)


def randomise(network, seed):
    """Give every parameter a random value, norms and zero-initialised convolutions too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            else:
                parameter.copy_(0.3 * noise + (1.0 if name.endswith("weight") else 0.0))
    return network.eval().requires_grad_(requires_grad=False)
