"""The one training loop, for priors and correctors, on a CPU or on GPUs alike (through accelerate).

Everything random in step n (which faces, flips, steps t, noise) is drawn from generators seeded by (seed, n,
process), so a run that was killed and resumed sees exactly what an uninterrupted one sees.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import nn

from faceprior.errors import OutputError
from faceprior.images import write_png
from faceprior.training.config import TrainConfig, to_dict
from faceprior.training.shards import PackedFaces

KEPT_CHECKPOINTS = 2


class Task(Protocol):
    """What is trained."""

    network: nn.Module

    def loss(self, network: nn.Module, faces: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Mean loss of a batch of faces in [-1, 1], (B, 3, R, R)."""

    def evaluate(self, network: nn.Module) -> tuple[dict[str, float], Image.Image]:
        """Held-out figures and a sheet of pictures of the averaged weights."""

    def export(self, network: nn.Module, folder: Path, training: dict[str, Any], held_out: dict[str, float]) -> None:
        """Write the averaged weights, loadable by name of the folder, with their card."""


def train(
    task: Task,
    config: TrainConfig,
    faces: PackedFaces,
    output: Path,
    *,
    resume: bool = False,
    command: str = "",
    on_step: Callable[[int, float, dict[str, float] | None], object] = lambda *_: None,
) -> dict[str, float]:
    """Train until `config.steps`, or until interrupted, and leave everything in `output`.

    `output` holds `config.yaml`, `log.jsonl` (loss of every step, figures of every evaluation), TensorBoard
    events, `checkpoints/`, `sheets/` and `weights/`, the exported averaged weights.

    Args:
        task: what is trained.
        config: options.
        faces: the training split.
        output: folder of the run.
        resume: go on from the newest checkpoint in `output`; without it `output` must hold none.
        command: command line, for the card.
        on_step: called with (steps done, loss, figures or None) after every step.

    Returns:
        The figures of the last evaluation.

    Raises:
        OutputError: `output` holds checkpoints and `resume` is False.
    """
    checkpoints = output / "checkpoints"
    newest = max(checkpoints.glob("step-*"), default=None)
    if newest is not None and not resume:
        raise OutputError(f"{output} holds a run that has reached {newest.name}; add --resume or choose another --output")
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.yaml").write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")

    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        log_with="tensorboard" if find_spec("tensorboard") else None,
        project_dir=str(output),
        cpu=not torch.cuda.is_available(),
    )
    network = task.network.to(accelerator.device, memory_format=torch.channels_last)
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    ema = EMAModel(parameters, decay=config.ema_decay)
    model, optimizer = accelerator.prepare(torch.compile(network) if config.compile else network, optimizer)
    accelerator.register_for_checkpointing(ema)
    ema.to(accelerator.device)
    accelerator.init_trackers("tensorboard")

    step, started, held_out = 0, time.monotonic(), dict[str, float]()
    if newest is not None:
        accelerator.load_state(str(newest))
        step = int(newest.name.removeprefix("step-"))
    log = _Log(output / "log.jsonl", step)
    draw = _Batches(faces, config, accelerator)
    network.train()
    try:
        while step < config.steps:
            batch, generator = draw(step)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * config.learning_rate_factor(step)
            loss = task.loss(model, batch, generator)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(parameters, config.gradient_clip)
            optimizer.step()
            optimizer.zero_grad()
            ema.step(parameters)
            step += 1
            value = loss.item()
            figures = None
            if step % config.evaluate_every == 0 or step == config.steps:
                network.eval()
                ema.store(parameters)
                ema.copy_to(parameters)
                if accelerator.is_main_process:
                    held_out, sheet = task.evaluate(network)
                    figures = held_out
                    (output / "sheets").mkdir(exist_ok=True)
                    write_png(output / "sheets" / f"step-{step:07d}.png", sheet)
                    training = {
                        "command": command,
                        "steps": step,
                        "samples": step * config.batch_size,
                        "config": to_dict(config),
                    }
                    task.export(network, output / "weights", training, held_out)
                ema.restore(parameters)
                network.train()
            log.write(step=step, loss=value, seconds=round(time.monotonic() - started, 1), held_out=figures)
            accelerator.log({"loss": value, **(figures or {})}, step=step)
            if step % config.checkpoint_every == 0 or step == config.steps:
                _save_checkpoint(accelerator, checkpoints, step)
            on_step(step, value, figures)
    finally:
        log.close()
        accelerator.end_training()
    return held_out


def _save_checkpoint(accelerator: Accelerator, checkpoints: Path, step: int) -> None:
    partial = checkpoints / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        final = checkpoints / f"step-{step:07d}"
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for old in sorted(checkpoints.glob("step-*"))[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old)


class _Batches:
    """Draws the batch of any step, the same one each time; on a GPU from a copy of the faces in its memory."""

    def __init__(self, faces: PackedFaces, config: TrainConfig, accelerator: Accelerator) -> None:
        self.faces, self.config = faces, config
        self.device: torch.device = accelerator.device
        self.process = accelerator.process_index
        self.count = max(1, config.batch_size // accelerator.num_processes)
        self.weights = faces.balanced_weights(config.balance)
        self.resident = None if self.device.type == "cpu" else faces.pixels(range(len(faces))).to(self.device)

    def __call__(self, step: int) -> tuple[torch.Tensor, torch.Generator]:
        """Faces in [-1, 1], (B, 3, R, R), and the generator for the rest of the step."""
        seed, device_seed = np.random.SeedSequence([self.config.seed, step, self.process]).generate_state(2).tolist()
        host = torch.Generator().manual_seed(seed)
        indices = torch.multinomial(self.weights, self.count, replacement=True, generator=host)
        flipped = torch.rand(self.count, generator=host) < self.config.flip
        if self.resident is None:
            pixels = self.faces.pixels(indices.tolist())
        else:
            pixels, flipped = self.resident[indices.to(self.device)], flipped.to(self.device)
        faces = pixels.float() / 127.5 - 1.0
        faces = torch.where(flipped.view(-1, 1, 1, 1), faces.flip(-1), faces)
        return faces, torch.Generator(self.device).manual_seed(device_seed)


class _Log:
    """A line of JSON a step; lines that a killed run wrote after its last checkpoint are dropped on resume."""

    def __init__(self, path: Path, step: int) -> None:
        kept: list[str] = []
        if path.exists():
            kept = [line for line in path.read_text("utf-8").splitlines() if _step_of(line) <= step]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self.file = path.open("a", encoding="utf-8")

    def write(self, **values: Any) -> None:
        self.file.write(json.dumps({k: v for k, v in values.items() if v is not None}) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line cut short by the kill


def stratified_timesteps(count: int, steps: int, generator: torch.Generator) -> torch.Tensor:
    """Draw one t from each of `count` equal parts of 0 … steps−1, int64, (count,), in random order."""
    device = generator.device
    offsets = torch.rand(count, generator=generator, device=device)
    order = torch.randperm(count, generator=generator, device=device)
    return ((order + offsets) * (steps / count)).long().clamp(max=steps - 1)
