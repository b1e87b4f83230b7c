"""Training a prior."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import UNet2DModel
from PIL import Image
from torch import nn

from faceprior.errors import OptionError
from faceprior.evaluation.metrics import psnr
from faceprior.images import to_pil
from faceprior.priors.adapter import Prior
from faceprior.priors.card import TIGHT_TEMPLATE
from faceprior.priors.noise_schedule import ddim_scheduler_config
from faceprior.priors.residual_unet import GaussianResidualUNet
from faceprior.priors.store import load_prior, save_prior
from faceprior.sampling import NoiseSource, Restoration, Sampler, make_solver, sample, spaced_steps
from faceprior.training.config import PriorConfig, Weighting, build_network
from faceprior.training.gaussian_fit import fit_gaussian, measure_error_std
from faceprior.training.shards import PackedFaces
from faceprior.training.trainer import stratified_uniform

EVALUATION_SHARES = (0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95)
"""The ten noise levels of the held-out curve, as fractions of T."""

_MIN_SNR_GAMMA = 5.0
_EVALUATION_SEED = 1234
_SAMPLE_STEPS = 20


class PriorTask:
    """Trains a prior on clean faces: a squared x0 error, weighted by noise level.

    The Gaussian of a "gaussian-residual" network is fitted to the training faces. A prior to start from, instead of
    fresh weights, keeps its schedule and prediction type.

    Raises:
        OptionError: the prior to start from is for another resolution, or the weighting does not fit the network.
    """

    def __init__(
        self, config: PriorConfig, faces: PackedFaces, held_out: PackedFaces, start: str | Path | None = None
    ) -> None:
        self.config, self.faces, self.held_out = config, faces, held_out
        self.example = None
        self._fresh = start is None
        torch.manual_seed(config.seed)
        schedule = ddim_scheduler_config({}, config.prediction_type)
        if start is not None:
            prior = load_prior(start)
            faces.check_size(prior.resolution, f"prior {start}")
            self.network, schedule = prior.network, prior.card.schedule
            self.network.requires_grad_(requires_grad=True)
        elif config.network == "gaussian-residual":
            residual = build_network(GaussianResidualUNet, config.network_options, sample_size=faces.size)
            betas = {name: residual.config[name] for name in ("num_train_timesteps", "beta_start", "beta_end")}
            self.network, schedule = residual, ddim_scheduler_config(betas, "sample")
        else:
            self.network = build_network(UNet2DModel, config.network_options, sample_size=faces.size)
        if config.weighting == "residual" and not isinstance(self.network, GaussianResidualUNet):
            raise OptionError("weighting residual needs the network gaussian-residual; choose plain, min-snr or p2")
        self.prior = Prior(self.network, faces.card("prior", "faces", TIGHT_TEMPLATE, schedule))

    def prepare(self) -> None:
        """Fit the Gaussian of fresh weights to the training faces."""
        if self._fresh and isinstance(self.network, GaussianResidualUNet):
            weights = self.faces.balanced_weights(self.config.balance)
            fit_gaussian(self.network.gaussian, self.faces, weights)
            measure_error_std(self.network, self.faces, weights, seed=self.config.seed)

    def loss(self, network: nn.Module, pictures: Sequence[torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        """Weighted squared error of x0 at stratified random noise levels."""
        (faces,) = pictures
        shares = stratified_uniform(len(faces), generator)
        low, share = self.config.low_noise, self.config.low_noise_share
        levels = torch.where(shares < share, shares / share * low, 1 - (1 - shares) / (1 - share) * (1 - low))
        t = (levels * len(self.prior.schedule)).long().clamp(max=len(self.prior.schedule) - 1)
        noise = torch.randn(faces.shape, generator=generator, device=faces.device)
        x_t = self.prior.schedule.add_noise(faces, noise, t)
        prior = self._with(network)
        error = (prior(x_t, t).x0 - faces).square().mean((1, 2, 3))  # (B,)
        return (self.weight(t) * error).mean()

    def weight(self, t: torch.Tensor) -> torch.Tensor:
        """Weight of the squared x0 error at steps t, (B,)."""
        alphas_cumprod = self.prior.schedule.at(t).flatten()
        snr = alphas_cumprod / (1 - alphas_cumprod)
        weighting: Weighting = self.config.weighting
        if weighting == "residual":
            return cast("GaussianResidualUNet", self.network).error_std[t] ** -2
        if weighting == "min-snr":
            return snr.clamp(max=_MIN_SNR_GAMMA)
        if weighting == "p2":
            return snr / (1 + snr)
        return {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}[
            self.prior.card.prediction_type
        ]

    @torch.no_grad()
    def evaluate(self, network: nn.Module) -> tuple[dict[str, float], Image.Image]:
        """x0-PSNR of held-out faces at ten noise levels, in dB, and a sheet: noisy beside denoised, then samples."""
        prior = self._with(network)
        device = prior.device
        count = min(self.config.evaluate_faces, len(self.held_out))
        faces = self.held_out.batch(range(count)).to(device)
        generator = torch.Generator().manual_seed(_EVALUATION_SEED)
        noise = torch.randn(faces.shape, generator=generator).to(device)
        figures, rows = {}, []
        for share in EVALUATION_SHARES:
            t = torch.full((count,), int(share * len(prior.schedule)), device=device)
            x_t = prior.schedule.add_noise(faces, noise, t)
            parts = zip(x_t.split(32), t.split(32), strict=True)
            x0 = torch.cat([prior(x, s).x0 for x, s in parts]).clamp(-1, 1)
            figures[f"x0_psnr/{share:.2f}T"] = psnr(x0, faces).mean().item()
            rows.append(torch.cat([*x_t[:8].clamp(-1, 1), *x0[:8]], dim=2))
        figures["x0_psnr/mean"] = sum(figures.values()) / len(figures)
        rows = [*rows[1::2], torch.cat([*self._samples(prior, 2 * min(8, count))], dim=2)]
        return figures, to_pil(torch.cat(rows, dim=1))

    def _samples(self, prior: Prior, count: int) -> torch.Tensor:
        noise = NoiseSource([torch.Generator().manual_seed(seed) for seed in range(count)], prior.device)
        steps = spaced_steps(prior.schedule, min(_SAMPLE_STEPS, len(prior.schedule)))
        return sample(Restoration(), steps, Sampler(prior, make_solver("ddim"), noise))

    def export(self, network: nn.Module, folder: Path, training: dict[str, Any], held_out: dict[str, float]) -> None:
        """Write a prior folder in float16."""
        save_prior(self._with(network, training=training, held_out=held_out), folder)

    def _with(self, network: nn.Module, **card: Any) -> Prior:
        return Prior(network, replace(self.prior.card, **card))
