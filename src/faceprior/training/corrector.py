"""Training a corrector: clean faces, their degraded versions and the noise schedule; no prior."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from faceprior.corrector import ConditionCorrector, Corrector, load_corrector, save_corrector
from faceprior.degradations import bicubic_downscale, chain_preset, real_world
from faceprior.errors import OptionError
from faceprior.evaluation.metrics import psnr
from faceprior.images import resize, to_pil
from faceprior.priors.card import TIGHT_TEMPLATE, ModelCard
from faceprior.priors.store import ddim_scheduler_config
from faceprior.training.config import CorrectorConfig, build_network
from faceprior.training.prior import describe_data, licence_of
from faceprior.training.shards import PackedFaces
from faceprior.training.trainer import stratified_uniform

EVALUATION_SHARES = (0.1, 0.5, 0.9)
"""Noise levels of the held-out figures, as fractions of T."""

_EVALUATION_SEED = 1234
_RELATIVE_FLOOR = 1e-4  # squared error of a condition that is all but perfect: 46 dB


class CorrectorTask:
    """Trains a corrector on a mix of plain bicubic and the real-world chain, over a range of scales.

    Args:
        config: options.
        faces: the training split.
        held_out: the split that figures are measured on.
        start: a corrector to start from instead of fresh weights.

    Raises:
        OptionError: the chain is not known, or the corrector to start from is for another resolution.
    """

    def __init__(
        self,
        config: CorrectorConfig,
        faces: PackedFaces,
        held_out: PackedFaces,
        start: str | Path | None = None,
    ) -> None:
        self.config, self.held_out = config, held_out
        self.preset = chain_preset(config.chain)
        torch.manual_seed(config.seed)
        if start is not None:
            network = load_corrector(start).network
            if network.resolution != faces.size:
                raise OptionError(
                    f"corrector {start} is for {network.resolution}×{network.resolution} faces, the training set"
                    f" holds {faces.size}×{faces.size}; pack it again with another --size"
                )
            network.requires_grad_(requires_grad=True)
        else:
            network = build_network(ConditionCorrector, config.network_options, resolution=faces.size)
        self.network: nn.Module = network
        self.shape = network
        betas = {name: network.config[name] for name in ("num_train_timesteps", "beta_start", "beta_end")}
        self.card = ModelCard(
            kind="corrector",
            name=f"corrector-{faces.size}",
            resolution=faces.size,
            template=TIGHT_TEMPLATE,
            schedule=ddim_scheduler_config(betas, ""),
            data=describe_data(faces),
            licence=licence_of(faces),
        )

    def prepare(self) -> None:
        """Do nothing: fresh weights leave the condition as it is."""

    def loss(self, network: nn.Module, faces: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Squared error on the grid, weighted as the options say (DPI, CRT training)."""
        low, high = math.log(min(self.config.scales)), math.log(max(self.config.scales))
        host = torch.Generator().manual_seed(
            int(torch.randint(2**62, (), generator=generator, device=generator.device))
        )
        draws = torch.rand(len(faces), 2, generator=host).tolist()
        condition = torch.cat(
            [
                self.condition(face, math.exp(low + (high - low) * scale), damaged < self.config.damaged, host)
                for face, (scale, damaged) in zip(faces.cpu(), draws, strict=True)
            ]
        ).to(faces.device)
        total = len(self.shape.schedule)
        t = (stratified_uniform(len(faces), generator) * total).long().clamp(max=total - 1)
        corrected = network(self.noised(condition, t, generator), t, condition)
        target = self.on_grid(faces)
        error = (corrected - target).square().mean((1, 2, 3))  # (B,)
        if self.config.weighting == "relative":
            error = error / ((condition - target).square().mean((1, 2, 3)) + _RELATIVE_FLOOR)
        return error.mean()

    def condition(self, face: torch.Tensor, scale: float, damaged: bool, generator: torch.Generator) -> torch.Tensor:
        """First condition of one face (3, R, R), degraded to 1/scale of its side: (1, 3, R/k, R/k)."""
        side = round(face.shape[-1] / scale)
        if damaged:
            low_resolution = resize(real_world(face, self.preset, generator)[None], side).clamp(-1, 1)
        else:
            low_resolution = bicubic_downscale(face[None], side)
        return Corrector(self.shape, self.card).first_condition(low_resolution)

    def noised(self, condition: torch.Tensor, t: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw x_{t−1} around the condition, on the R×R grid.

        x_t ~ q(x_t | y) followed by x_{t−1} ~ q(x_{t−1} | x_t, y) has the marginal q(x_{t−1} | y), drawn directly.
        """
        stride, side = self.shape.stride, self.shape.resolution
        noise = torch.randn(condition.shape, generator=generator, device=condition.device)
        sample = condition.new_zeros(len(condition), 3, side, side)
        sample[..., ::stride, ::stride] = self.shape.schedule.add_noise(condition, noise, (t - 1).clamp(min=0))
        return sample

    def on_grid(self, faces: torch.Tensor) -> torch.Tensor:
        """The pixels of faces that lie on the grid."""
        return faces[..., :: self.shape.stride, :: self.shape.stride]

    @torch.no_grad()
    def evaluate(self, network: nn.Module) -> tuple[dict[str, float], Image.Image]:
        """PSNR gain on the grid over the condition, in dB, for each scale, kind of damage and noise level."""
        device = next(network.parameters()).device
        faces = self.held_out.batch(range(min(self.config.evaluate_faces, len(self.held_out))))
        target = self.on_grid(faces).to(device)
        figures, rows = {}, []
        for scale in (4.0, 8.0, 16.0):
            for damaged in (False, True):
                generator = torch.Generator().manual_seed(_EVALUATION_SEED)
                condition = torch.cat([self.condition(face, scale, damaged, generator) for face in faces]).to(device)
                before = psnr(condition, target)
                for share in EVALUATION_SHARES:
                    t = torch.full((len(faces),), int(share * len(self.shape.schedule)))
                    sample = self.noised(condition.cpu(), t, generator).to(device)
                    corrected = torch.cat(
                        [
                            network(*batch)
                            for batch in zip(
                                sample.split(32), t.to(device).split(32), condition.split(32), strict=True
                            )
                        ]
                    ).clamp(-1, 1)
                    kind = "damaged" if damaged else "bicubic"
                    gain = (psnr(corrected, target) - before).mean().item()
                    figures[f"psnr_gain/x{scale:.0f}/{kind}/{share:.1f}T"] = gain
                rows.append(torch.cat([*condition[:8], *corrected[:8]], dim=2))
        figures["psnr_gain/mean"] = sum(figures.values()) / len(figures)
        return figures, to_pil(torch.cat(rows, dim=1))

    def export(self, network: nn.Module, folder: Path, training: dict[str, Any], held_out: dict[str, float]) -> None:
        """Write a corrector folder in float16."""
        assert isinstance(network, ConditionCorrector)  # noqa: S101 - the trainer hands back our own network
        figures = {name: round(value, 3) for name, value in held_out.items()}
        save_corrector(Corrector(network, replace(self.card, training=training, held_out=figures)), folder)
