"""Training a corrector: clean faces, their damaged versions and the noise schedule; no prior."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from faceprior.corrector import (
    BlindCorrector,
    Correction,
    Corrector,
    CorrectorNetwork,
    PaperCorrector,
    load_corrector,
    save_corrector,
)
from faceprior.degradations import bicubic_downscale
from faceprior.evaluation.metrics import psnr
from faceprior.images import resize, to_pil
from faceprior.priors.card import TIGHT_TEMPLATE
from faceprior.priors.noise_schedule import ddim_scheduler_config
from faceprior.training.blind import blind
from faceprior.training.config import CorrectorConfig, build_network
from faceprior.training.shards import PackedFaces
from faceprior.training.trainer import stratified_uniform

EVALUATION_SHARES = (0.1, 0.2, 0.4)
"""Noise levels of the held-out figures, as fractions of T."""

_EVALUATION_SEED = 1234
_SMALLEST_ERROR = 1e-4  # squared error of a face that is all but perfect: 46 dB
_SMALLEST_VARIANCE = 1e-3  # of a sample's noise: below it the sample is the answer
_DOUBT_WEIGHT = 0.01  # of the logarithm's squared error beside the face's


class CorrectorTask:
    """Trains a corrector, from fresh weights or another's, on every kind of damage (`faceprior.training.blind`).

    Raises:
        OptionError: the corrector to start from is for another resolution.
    """

    def __init__(
        self, config: CorrectorConfig, faces: PackedFaces, held_out: PackedFaces, start: str | Path | None = None
    ) -> None:
        self.config, self.held_out = config, held_out
        torch.manual_seed(config.seed)
        if start is not None:
            network = load_corrector(start).network
            faces.check_size(network.resolution, f"corrector {start}")
            network.requires_grad_(requires_grad=True)
        else:
            kind: Callable[..., CorrectorNetwork] = BlindCorrector if config.network == "blind" else PaperCorrector
            network = build_network(kind, config.network_options, resolution=faces.size)
        self.network: CorrectorNetwork = network
        (low, high), (widest, closest) = config.scales, config.framing
        self.example = partial(blind, scales=(low, high), damaged=config.damaged, framing=(widest, closest))
        betas = {name: network.config[name] for name in ("num_train_timesteps", "beta_start", "beta_end")}
        template = TIGHT_TEMPLATE if config.framing == [1, 1] else ()
        self.card = faces.card("corrector", "corrector", template, ddim_scheduler_config(betas, ""))

    def prepare(self) -> None:
        """Do nothing: fresh weights leave the bad face as it is."""

    def loss(self, network: nn.Module, pictures: Sequence[torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        """Squared error, relative to the bad face's and on the grid to the sample's noise."""
        target, bad = pictures
        t = self.levels(len(target), generator)
        around = target if self.config.sample_around == "truth" else bad
        variance = (1 - self.network.schedule.at(t)) / self.network.schedule.at(t)
        correction = network(self.noised(around, t, generator), t, self.network.see(bad))
        error = (correction.x0 - target).square()
        known = (bad - target).square().mean((1, 2, 3), keepdim=True) + _SMALLEST_ERROR
        loss = (error / known).mean() + (self.on_grid(error) / variance.clamp(min=_SMALLEST_VARIANCE)).mean()
        if correction.log_error is not None:
            actual = (error.detach().mean(1, keepdim=True) + _SMALLEST_ERROR).log()
            loss = loss + _DOUBT_WEIGHT * (correction.log_error - actual).square().mean()
        return loss

    def levels(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Steps t, (count,): T − 1, without a sample, for a share; uniform up to the highest for the others."""
        total, shares = len(self.network.schedule), stratified_uniform(count, generator)
        alone = self.config.alone
        sampled = ((shares - alone) / max(1 - alone, 1e-9) * self.config.highest * total).long()
        return torch.where(shares < alone, total - 1, sampled.clamp(0, total - 1))

    def noised(self, faces: torch.Tensor, t: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw x_t ~ q(x_t | faces), (B, 3, R, R)."""
        noise = torch.randn(faces.shape, generator=generator, device=faces.device)
        return self.network.schedule.add_noise(faces, noise, t)

    def on_grid(self, images: torch.Tensor) -> torch.Tensor:
        """The pixels of images that lie on the grid."""
        return images[..., :: self.network.stride, :: self.network.stride]

    @torch.no_grad()
    def evaluate(self, network: nn.Module) -> tuple[dict[str, float], Image.Image]:
        """PSNR in dB: of faces without a sample, and on the grid with samples of three levels around the truth."""
        device = next(network.parameters()).device
        faces = self.held_out.batch(range(min(self.config.evaluate_faces, len(self.held_out))))
        side = faces.shape[-1]
        inputs = {
            f"x{scale}": resize(bicubic_downscale(faces, side // scale), side).clamp(-1, 1) for scale in (4, 8, 16)
        }
        generator, total = torch.Generator().manual_seed(_EVALUATION_SEED), len(self.network.schedule)
        low, high = self.config.scales
        clean, bad = zip(*(blind(face, generator, (low, high), damaged=1.0) for face in faces), strict=True)
        inputs["damaged"] = torch.stack(bad)
        figures, rows = {}, []
        for name, images in inputs.items():
            target = torch.stack(clean) if name == "damaged" else faces
            for share in (None, *EVALUATION_SHARES):
                t = torch.full((len(faces),), total - 1 if share is None else int(share * total))
                sample = self.noised(target, t, torch.Generator().manual_seed(_EVALUATION_SEED))
                x0 = self._corrected(network, sample, t, images, device)
                if share is None:
                    figures[f"psnr/{name}"] = psnr(x0, target).mean().item()
                    rows.append(torch.cat([*images[:8], *x0[:8]], dim=2))
                else:
                    level = psnr(self.on_grid(x0), self.on_grid(target))
                    figures[f"grid_psnr/{name}/{share:.1f}T"] = level.mean().item()
        return figures, to_pil(torch.cat(rows, dim=1))

    def _corrected(
        self, network: nn.Module, sample: torch.Tensor, t: torch.Tensor, images: torch.Tensor, device: torch.device
    ) -> torch.Tensor:
        parts = zip(sample.split(32), t.split(32), self.network.see(images).split(32), strict=True)
        corrections: list[Correction] = [network(*(tensor.to(device) for tensor in part)) for part in parts]
        return torch.cat([correction.x0.cpu() for correction in corrections]).clamp(-1, 1)

    def export(self, network: nn.Module, folder: Path, training: dict[str, Any], held_out: dict[str, float]) -> None:
        """Write a corrector folder in float16."""
        assert isinstance(network, CorrectorNetwork)  # noqa: S101 - the trainer hands back our own network
        save_corrector(Corrector(network, replace(self.card, training=training, held_out=held_out)), folder)
