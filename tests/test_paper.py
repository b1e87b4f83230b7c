"""The paper's system, an ADM checkpoint with the authors' corrector and presets, against their own equations."""

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from adm_reference import ADMUNet, randomise
from faceprior import FacePriorPipeline
from faceprior.corrector import Corrector, PaperCorrector, save_corrector
from faceprior.methods import find_preset
from faceprior.priors.card import ModelCard
from faceprior.sampling import spawn_generators

SIX_LEVELS = (1, 1, 2, 2, 4, 4)  # of ffhq_10m.pt, whose fifth level has self-attention
SMALL = {"image_size": 32, "num_channels": 32, "attention_resolutions": (2,), "num_head_channels": 32}
WHOLE = {"image_size": 256, "num_channels": 128, "attention_resolutions": (16,), "num_head_channels": 64}


class Reference:
    """DPI's equations for one face, all of it in float64, with masks of R×R pixels.

    prior: the checkpoint's network; crt: (x_{t−1}, t, first condition) → condition, the grid of R/2×R/2.
    """

    def __init__(self, prior, crt, *, ancestral):
        self.prior, self.crt, self.ancestral = prior, crt, ancestral
        betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        self.alphas_cumprod = torch.cumprod(1 - betas, 0)

    def run(self, low, levels, generator):
        """Restore `low` (3, n, n), and yield every x_{t−1}; levels: t of every step, the noisiest first."""
        side = self.prior.side
        x = torch.randn(3, side, side, generator=generator).double()
        first = F.interpolate(low[None].double(), size=(side // 2, side // 2), mode="bicubic", antialias=True)[0]
        first = condition = first.clamp(-1, 1)
        for t, t_prev in zip(levels, (*levels[1:], None), strict=True):
            x, condition = self.step(x, condition, first, t, t_prev, generator)
            yield x

    def step(self, x, condition, first, t, t_prev, generator):
        level = self.alphas_cumprod[t]
        eps, share = self.prior(x[None], torch.tensor([t]))[0].chunk(2)
        x0 = ((x - (1 - level).sqrt() * eps) / level.sqrt()).clamp(-1, 1)
        if t_prev is None:  # left to the prior, without noise
            return x0, condition
        weight = self.weight(t, condition, generator)
        level_prev = self.alphas_cumprod[t_prev]
        y = torch.zeros_like(x)
        y[:, ::2, ::2] = condition
        if not self.ancestral:
            eps = (x - level.sqrt() * x0) / (1 - level).sqrt()
            unbent, bent = (level_prev.sqrt() * clean + (1 - level_prev).sqrt() * eps for clean in (x0, y))
        else:
            beta = 1 - level / level_prev
            posterior = beta * (1 - level_prev) / (1 - level)
            log_variance = (share + 1) / 2 * beta.log() + (1 - share) / 2 * posterior.log()
            noise = (log_variance / 2).exp() * torch.randn(x.shape, generator=generator).double()

            def mean(clean, noisy):
                of_noisy = (1 - beta).sqrt() * (1 - level_prev) / (1 - level)
                return beta * level_prev.sqrt() / (1 - level) * clean + of_noisy * noisy

            unbent = mean(x0, x) + noise
            bent = mean(y, level.sqrt() * y + (1 - level).sqrt() * eps) + noise
        x = unbent + weight * (bent - unbent)
        return x, self.crt(x, t, first)

    def weight(self, t, condition, generator):
        """w_t · m_t: the grid, later its edges at random (the table of the published presets)."""
        tau, slope, exponent = (300, 1 / 750, 1.2) if self.ancestral else (350, 1 / 1500, 1.4)
        full = torch.zeros(1, 2 * condition.shape[1], 2 * condition.shape[2], dtype=torch.float64)
        full[:, ::2, ::2] = 1
        if t > tau:
            return full
        grey = np.tensordot((0.2989, 0.587, 0.114), condition.numpy(), 1)
        padded = np.pad(grey, 1, mode="reflect")
        around = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
        strength = np.abs(4 * grey - around)
        strength = (strength - strength.min()) / (strength.max() - strength.min())
        uniform = torch.rand(condition.shape[1:], generator=generator).double()
        full[:, ::2, ::2] *= uniform < torch.from_numpy(strength) ** exponent
        return slope * t * full


def checkpoint(folder, flags):
    """Random weights in a file as the authors have it, and the network that they are of, in float64."""
    shape = flags["image_size"], flags["num_channels"], 1, SIX_LEVELS, flags["attention_resolutions"]
    network = randomise(ADMUNet(*shape, flags["num_head_channels"]), 0)
    network.out[2].weight.mul_(0.3)  # about the variance of noise
    torch.save(network.state_dict(), folder / "adm.pt")
    (folder / "flags.json").write_text(json.dumps({**flags, "channel_mult": SIX_LEVELS}))
    network.side = flags["image_size"]
    return network.double()


def corrector(folder, side):
    """The authors' corrector with random weights, saved; returns what the reference calls."""
    torch.manual_seed(1)
    network = PaperCorrector(side)
    torch.nn.init.normal_(network.unet.conv_out.weight, std=0.02)
    network.eval().requires_grad_(requires_grad=False)
    save_corrector(Corrector(network, ModelCard(kind="corrector", name="crt", resolution=side)), folder, half=False)
    exact = copy.deepcopy(network).double()
    return lambda x, t, first: exact(x[None], torch.tensor([t]), first[None]).x0[0, :, ::2, ::2].double()


def face(side):
    place = torch.linspace(0, 1, side)
    waves = torch.sin(9 * place[:, None] + torch.arange(3.0)[:, None, None]) * torch.cos(7 * place)
    return (0.7 * waves + 0.1 * torch.randn(3, side, side, generator=torch.Generator().manual_seed(2))).clamp(-1, 1)


@torch.no_grad()
@pytest.mark.parametrize(
    ("flags", "preset_name", "levels"),
    [
        pytest.param(SMALL, "paper-ddim", range(950, -1, -50), id="20 steps of DDIM"),
        pytest.param(SMALL, "paper-ddpm", range(980, -1, -20), id="50 ancestral steps"),
        pytest.param(WHOLE, "paper-ddim", range(950, -1, -50), id="ffhq_10m", marks=pytest.mark.slow),
    ],
)
def test_the_papers_system_gives_what_the_authors_equations_give(tmp_path, flags, preset_name, levels):
    """The small system runs on its own. The whole one begins every step where the equations ended the one before:
    random weights do not contract as a prior's do, and what float32 rounds grows by half a step."""
    prior, side = checkpoint(tmp_path, flags), flags["image_size"]
    crt = corrector(tmp_path / "crt", side)
    low = face(side // 8)

    pipeline = FacePriorPipeline.from_pretrained(
        tmp_path / "adm.pt", adm_config=tmp_path / "flags.json", corrector=tmp_path / "crt"
    )
    preset = find_preset(preset_name).with_options(steps=len(levels))
    (own,) = spawn_generators(torch.Generator().manual_seed(7), 1)
    reference = Reference(prior, crt, ancestral=preset_name == "paper-ddpm").run(low, list(levels), own)

    def compare(step, x_prev, *_):
        expected = next(reference)
        assert expected.std() > 0.3
        torch.testing.assert_close(x_prev[0].double(), expected, atol=1e-4, rtol=0)
        return expected[None].float() if flags is WHOLE else x_prev

    pipeline.restore([low], [torch.Generator().manual_seed(7)], 1, preset, 1, compare)
    assert next(reference, None) is None
