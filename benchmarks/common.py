"""What the scripts share: a description of the machine, tables, networks of random weights, runs in new processes."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import UNet2DModel
from rich import box
from rich.console import Console
from rich.table import Table

from faceprior.corrector import BlindCorrector, Corrector, PaperCorrector
from faceprior.devices import choose_device, choose_dtype
from faceprior.images import resize
from faceprior.pipeline import FacePriorPipeline
from faceprior.priors import ModelCard, Prior
from faceprior.priors.adm import ADMConfig, build_unet
from faceprior.priors.noise_schedule import ddim_scheduler_config

PAPER = "random:ffhq"
"""The paper's 256×256 network and corrector with random weights, which take as long as trained ones."""
CELEBAHQ = "random:celebahq"
"""The same of `google/ddpm-ema-celebahq-256`, with the embedded corrector's shape."""


def machine() -> str:
    """Return what decides a speed besides the program."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor() or platform.machine()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{cpu} ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads of {os.cpu_count()}"
        f" cores, {gpu}, torch {torch.__version__}{load}"
    )


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table: for a terminal, or as Markdown into a file or pipe."""
    console = Console() if sys.stdout.isatty() else Console(width=200)
    table = Table(box=box.SIMPLE if console.is_terminal else box.MARKDOWN)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*map(str, row))
    console.print(f"\n{title}", highlight=False, soft_wrap=True)
    console.print(table)


def load(prior: str, device: str = "auto", dtype: str = "auto") -> FacePriorPipeline:
    """Load a prior as `--prior` names it ("" is the embedded one), or `PAPER`, `CELEBAHQ`, "random:SIDE" (small)."""
    where = choose_device(device)
    if prior.startswith("random:"):
        pipeline = _random(prior)
    else:
        pipeline = FacePriorPipeline.from_pretrained(*([prior] if prior else []))
    return pipeline.to(where, choose_dtype(dtype, where))


def _random(name: str) -> FacePriorPipeline:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name == PAPER:
            network, corrector = build_unet(ADMConfig()), PaperCorrector()
        elif name == CELEBAHQ:
            network = UNet2DModel(
                sample_size=256,
                layers_per_block=2,
                block_out_channels=(128, 128, 256, 256, 512, 512),
                down_block_types=(*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4),
                downsample_padding=0,
                flip_sin_to_cos=False,
                freq_shift=1,
                norm_eps=1e-6,
                attention_head_dim=None,
            )
            corrector = BlindCorrector(256, widths=(32, 64, 112, 152, 176), blocks=(1, 1, 1, 2, 2))
        else:
            network = UNet2DModel(
                sample_size=int(name.removeprefix("random:")),
                layers_per_block=1,
                block_out_channels=(32, 64, 96),
                down_block_types=("DownBlock2D",) * 3,
                up_block_types=("UpBlock2D",) * 3,
                add_attention=False,
                norm_num_groups=8,
            )
            corrector = None
    for own in (network, corrector):
        if own is not None:
            own.eval().requires_grad_(requires_grad=False)
    schedule = ddim_scheduler_config({}, "epsilon")
    side = int(network.config.sample_size)
    prior = Prior(network, ModelCard(kind="prior", name=name, resolution=side, schedule=schedule))
    described = ModelCard(kind="corrector", name=name, resolution=side, schedule=schedule)
    return FacePriorPipeline(prior, Corrector(corrector, described) if corrector else None)


def smooth_faces(count: int, side: int) -> list[torch.Tensor]:
    """Return smooth random pictures, each (3, side, side) in [-1, 1], the same ones at every call."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return list(resize(coarse, side).clamp(-1, 1))


# the peak of getrusage would be that of the process which started this one, where that is higher
_TELL = """
import time
try:
    peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:"))
except OSError:
    peak = 0
print("\\n", time.process_time(), peak)
"""


class ProcessRun(NamedTuple):
    """Seconds, processor seconds and peak MB of a program in a process of its own; 0 MB where it is not told."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


def run_python(program: str) -> ProcessRun:
    """Run a program in a new process of this interpreter; raises RuntimeError with what it said if it fails."""
    wrapped = f"try:\n    exec({program!r})\nexcept SystemExit as stop:\n    if stop.code: raise\n{_TELL}"
    start = time.perf_counter()
    found = subprocess.run([sys.executable, "-"], input=wrapped, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if found.returncode:
        raise RuntimeError(f"{program[:200]}: {(found.stderr or found.stdout)[-1000:]}")
    cpu, peak = found.stdout.split()[-2:]
    return ProcessRun(seconds, float(cpu), int(peak) * 1024 / 1e6)


def run_faceprior(*arguments: str) -> ProcessRun:
    """Run a command line of faceprior in a new process."""
    return run_python(f"import sys; from faceprior.cli import main; sys.argv = {['faceprior', *arguments]!r}; main()")
