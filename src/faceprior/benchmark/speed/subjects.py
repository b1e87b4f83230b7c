"""What is measured: a prior and its corrector, real ones or of random weights."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

from faceprior.devices import choose_device, choose_dtype
from faceprior.errors import OptionError
from faceprior.pipeline import FacePriorPipeline
from faceprior.priors import DEFAULT_PRIOR, ModelCard
from faceprior.priors.noise_schedule import ddim_scheduler_config

if TYPE_CHECKING:
    from faceprior.corrector import PaperCorrector

RANDOM = "random:"
"""Begins the name of a network of random weights, whose time is that of trained ones."""

_SMALL = re.compile(r"\d+")


def load_subject(prior: str, corrector: str, device: str, dtype: str) -> FacePriorPipeline:
    """Load what is to be measured onto a device.

    Args:
        prior: as `--prior`, "" for the embedded one; or "random:ffhq", the paper's 256×256 network and corrector with
            random weights; or "random:SIDE", a small network for pictures of that side without a corrector.
        corrector: as `--corrector`; of a random prior only "auto" and "none".
        device: "auto", "cpu", "cuda" or "mps".
        dtype: "auto", "float32", "bfloat16" or "float16".

    Raises:
        OptionError: there is no such random network.
        WeightsError: weights cannot be loaded.
        DeviceError: the machine has no such device.
    """
    where = choose_device(device)
    if prior.startswith(RANDOM):
        pipeline = random_pipeline(prior.removeprefix(RANDOM), with_corrector=corrector != "none")
    else:
        pipeline = FacePriorPipeline.from_pretrained(prior or DEFAULT_PRIOR, corrector=corrector)
    return pipeline.to(where, choose_dtype(dtype, where))


def random_pipeline(name: str, *, with_corrector: bool = True) -> FacePriorPipeline:
    """Make a pipeline of random weights.

    Args:
        name: "ffhq", or the side of a small network's pictures, a multiple of 8.
        with_corrector: give it the paper's corrector, if it is the paper's prior.

    Raises:
        OptionError: the name is neither.
    """
    from diffusers import DDIMScheduler

    if name != "ffhq" and not (_SMALL.fullmatch(name) and int(name) >= 16 and int(name) % 8 == 0):
        raise OptionError(
            f"{RANDOM}{name} is not known; choose {RANDOM}ffhq, or {RANDOM}SIDE with a multiple of 8 from 16"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _paper_prior() if name == "ffhq" else _small_prior(int(name))
        corrector = _paper_corrector() if name == "ffhq" and with_corrector else None
    schedule = ddim_scheduler_config({}, "epsilon")
    card = ModelCard(
        kind="prior",
        name=RANDOM + name,
        resolution=int(network.config.sample_size),
        schedule=schedule,
        prediction_type="epsilon",
    )
    return FacePriorPipeline(network, DDIMScheduler.from_config(schedule), corrector, card=card)


def _paper_prior() -> Any:
    from faceprior.priors.adm import ADMConfig, build_unet

    return build_unet(ADMConfig()).eval().requires_grad_(requires_grad=False)


def _paper_corrector() -> PaperCorrector:
    from faceprior.corrector import PaperCorrector

    corrector: PaperCorrector = PaperCorrector().eval().requires_grad_(requires_grad=False)
    return corrector


def _small_prior(side: int) -> Any:
    from diffusers import UNet2DModel

    network = UNet2DModel(
        sample_size=side,
        layers_per_block=1,
        block_out_channels=(32, 64, 96),
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        add_attention=False,
        norm_num_groups=8,
    )
    return network.eval().requires_grad_(requires_grad=False)
