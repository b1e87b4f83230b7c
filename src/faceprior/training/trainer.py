"""The one training loop, for priors and correctors, on a CPU or on GPUs alike (through accelerate).

Everything random in step n (which faces, flips, steps t, noise) is drawn from generators seeded by (seed, n,
process), so a run that was killed and resumed sees exactly what an uninterrupted one sees.
"""

from __future__ import annotations

import json
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import nn

from faceprior.devices import choose_device, choose_dtype
from faceprior.errors import OptionError, OutputError
from faceprior.images import write_png
from faceprior.networks import inner_matrices
from faceprior.training.config import TrainConfig
from faceprior.training.muon import Muon
from faceprior.training.shards import PackedFaces

if TYPE_CHECKING:
    from typing_extensions import Self

KEPT_CHECKPOINTS = 2

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Task(Protocol):
    """What is trained."""

    network: nn.Module

    def prepare(self) -> None:
        """Do what fresh weights need before the first step; a resumed run has the outcome in its checkpoint."""

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
    """Train for `config.steps` or `config.minutes`, or until interrupted, and leave everything in `output`.

    `output` holds `config.yaml`, `log.jsonl` (loss of every step, seconds of computing so far, figures of every
    evaluation), TensorBoard events, `checkpoints/`, `sheets/` and `weights/`, the exported averaged weights.

    Args:
        task: what is trained.
        config: options.
        faces: the training split.
        output: folder of the run.
        resume: go on from the newest checkpoint in `output`; without it `output` must hold none.
        command: command line, for the card.
        on_step: called with (steps done, loss, figures or None) after every step, in the main process.

    Returns:
        The figures of the last evaluation; none if a resumed run was already done.

    Raises:
        OutputError: `output` holds checkpoints and `resume` is False, or they are of another network.
        OptionError: the batch does not divide among the processes, or the precision needs a GPU.
        KeyboardInterrupt: SIGINT or SIGTERM came. The step under way is ended and saved as a checkpoint first,
            so that nothing is lost; a second signal does not wait.
    """
    checkpoints = output / "checkpoints"
    newest = _newest(checkpoints, resume=resume)
    accelerator = _accelerator(config, output)
    if newest is None:
        task.prepare()
    main = accelerator.is_main_process
    learner = _Learner(task.network, config, accelerator)
    step, held_out = 0, dict[str, float]()
    if newest is not None:
        step = learner.load(newest)
    if main:
        output.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(config.model_dump(), sort_keys=False)
        (output / "config.yaml").write_text(text, encoding="utf-8")
    accelerator.init_trackers("tensorboard")
    draw = _Batches(faces, config, accelerator)
    learner.network.train()
    limit = config.minutes * 60 or math.inf
    stopping = False
    try:
        with _StopSignals() as signals, _Log(output / "log.jsonl" if main else None, step) as log:
            seconds = log.seconds
            done = step >= config.steps or seconds >= limit
            while not (done or stopping):
                begun = _clock(accelerator.device)
                loss = learner.step(task, *draw(step), step)
                step += 1
                # one exchange for all, after which every process stops at the same step
                flags = loss.new_tensor([signals.came, seconds >= limit], dtype=torch.float32)
                state = torch.cat([loss.float().view(1), flags])
                value, came, expired = accelerator.reduce(state, "mean").tolist()
                seconds += _clock(accelerator.device) - begun
                stopping, done, figures = came > 0, step == config.steps or expired > 0, None
                if step % config.evaluate_every == 0 or done:
                    with learner.averaged() as network:
                        if main:
                            held_out = figures = _evaluate(task, network, config, output, step, command)
                log.write(step=step, loss=value, seconds=round(seconds, 1), held_out=figures)
                accelerator.log({"loss": value, **(figures or {})}, step=step)
                if step % config.checkpoint_every == 0 or done or stopping:
                    learner.save(checkpoints, step)
                if main:
                    on_step(step, value, figures)
    finally:
        accelerator.end_training()
    if not done:
        raise KeyboardInterrupt
    return held_out


def _newest(checkpoints: Path, *, resume: bool) -> Path | None:
    newest, output = max(checkpoints.glob("step-*"), default=None), checkpoints.parent
    if newest is not None and not resume:
        raise OutputError(
            f"{output} holds a run that has reached {newest.name}; add --resume or choose another --output"
        )
    return newest


def _clock(device: torch.device) -> float:
    """Seconds of computing: of one thread's share of the processor on a CPU, which others may be using too."""
    return time.process_time() / torch.get_num_threads() if device.type == "cpu" else time.monotonic()


def _accelerator(config: TrainConfig, output: Path) -> Accelerator:
    cpu = not torch.cuda.is_available()
    precision = config.mixed_precision
    if precision == "auto":
        precision = "bf16" if choose_dtype("auto", choose_device()) is torch.bfloat16 else "no"
    if cpu and precision == "fp16":
        raise OptionError("mixed_precision fp16 needs a GPU; choose bf16 or no")
    # without this a second training in one process is refused another precision
    AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001
    accelerator = Accelerator(
        mixed_precision=precision,
        log_with="tensorboard" if find_spec("tensorboard") else None,
        project_dir=str(output),
        cpu=cpu,
    )
    if config.batch_size % accelerator.num_processes:
        raise OptionError(
            f"batch_size {config.batch_size} does not divide among {accelerator.num_processes} processes"
        )
    return accelerator


def _evaluate(
    task: Task, network: nn.Module, config: TrainConfig, output: Path, step: int, command: str
) -> dict[str, float]:
    held_out, sheet = task.evaluate(network)
    (output / "sheets").mkdir(exist_ok=True)
    write_png(output / "sheets" / f"step-{step:07d}.png", sheet)
    training = {
        "command": command,
        "steps": step,
        "samples": step * config.batch_size,
        "config": config.model_dump(),
    }
    task.export(network, output / "weights", training, held_out)
    return held_out


class _Learner:
    """The network, its optimiser and its averaged weights, as accelerate runs, saves and loads them."""

    def __init__(self, network: nn.Module, config: TrainConfig, accelerator: Accelerator) -> None:
        self.config, self.accelerator = config, accelerator
        self.network: nn.Module = network.to(accelerator.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        matrices = inner_matrices(self.network)
        own = {id(matrix) for matrix in matrices}
        rates: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
        optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW([p for p in self.parameters if id(p) not in own], fused=True, **rates)
        ]
        if matrices:
            optimizers.append(Muon(matrices, **rates))
        self.ema = EMAModel(self.parameters, decay=config.ema_decay)
        model = torch.compile(self.network) if config.compile else self.network
        self.model, *self.optimizers = accelerator.prepare(model, *optimizers)
        accelerator.register_for_checkpointing(self.ema)

    def step(self, task: Task, faces: torch.Tensor, generator: torch.Generator, step: int) -> torch.Tensor:
        """Take one optimiser step; returns the loss of this process."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.config.learning_rate * self.config.learning_rate_factor(step)
        loss = task.loss(self.model, faces, generator)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.parameters, self.config.gradient_clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.ema.step(self.parameters)
        return loss.detach()

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """Put the averaged weights into the network for a while."""
        self.network.eval()
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        try:
            yield self.network
        finally:
            self.ema.restore(self.parameters)
            self.network.train()

    def save(self, checkpoints: Path, step: int) -> None:
        """Write `step-…`, all of it or nothing, and remove the oldest beyond `KEPT_CHECKPOINTS`."""
        partial = checkpoints / "partial"
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            final = checkpoints / f"step-{step:07d}"
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            for old in sorted(checkpoints.glob("step-*"))[:-KEPT_CHECKPOINTS]:
                shutil.rmtree(old)

    def load(self, checkpoint: Path) -> int:
        """Load a checkpoint; returns its step."""
        try:
            self.accelerator.load_state(str(checkpoint))
        except (RuntimeError, ValueError) as error:
            raise OutputError(
                f"{checkpoint} does not fit this network; resume with the options in its run's config.yaml ({error})"
            ) from error
        self.ema.to(self.accelerator.device)  # accelerate leaves it on the CPU
        return int(checkpoint.name.removeprefix("step-"))


class _StopSignals:
    """Takes note of SIGINT and SIGTERM, so that the step under way can end; a second one acts as ever."""

    def __enter__(self) -> Self:
        self.came = False
        main = threading.current_thread() is threading.main_thread()  # no other thread may set handlers
        self.before = {number: signal.signal(number, self._note) for number in _SIGNALS if main}
        return self

    def _note(self, *_: object) -> None:
        self.came = True
        self.__exit__()

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler or signal.SIG_DFL)


class _Batches:
    """Draws the batch of any step, the same one each time; on a GPU from a copy in its memory if that fits."""

    def __init__(self, faces: PackedFaces, config: TrainConfig, accelerator: Accelerator) -> None:
        self.faces, self.config = faces, config
        self.device: torch.device = accelerator.device
        self.process = accelerator.process_index
        self.count = max(1, config.batch_size // accelerator.num_processes)
        self.weights = faces.balanced_weights(config.balance)
        self.resident: torch.Tensor | None = None
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            if len(faces) * faces.nbytes < free / 2:  # the rest is for training
                self.resident = faces.pixels(range(len(faces))).to(self.device)

    def __call__(self, step: int) -> tuple[torch.Tensor, torch.Generator]:
        """Faces in [-1, 1], (B, 3, R, R), and the generator for the rest of the step."""
        seed, device_seed = np.random.SeedSequence([self.config.seed, step, self.process]).generate_state(2).tolist()
        host = torch.Generator().manual_seed(seed)
        indices = torch.multinomial(self.weights, self.count, replacement=True, generator=host)
        flipped = torch.rand(self.count, generator=host) < self.config.flip
        if self.resident is None:
            pixels = self.faces.pixels(indices.tolist()).to(self.device)
        else:
            pixels = self.resident[indices.to(self.device)]
        flipped = flipped.to(self.device)
        faces = pixels.float() / 127.5 - 1.0
        faces = torch.where(flipped.view(-1, 1, 1, 1), faces.flip(-1), faces)
        return faces, torch.Generator(self.device).manual_seed(device_seed)


class _Log:
    """A line of JSON a step; lines that a killed run wrote after its last checkpoint are dropped on resume."""

    def __init__(self, path: Path | None, step: int) -> None:
        self.path, self.step, self.seconds = path, step, 0.0

    def __enter__(self) -> Self:
        self.file: TextIO | None = None
        if self.path is not None:
            lines = self.path.read_text("utf-8").splitlines() if self.path.exists() else []
            kept = [line for line in lines if _step_of(line) <= self.step]
            self.path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            self.seconds = float(json.loads(kept[-1])["seconds"]) if kept else 0.0
            self.file = self.path.open("a", encoding="utf-8")
        return self

    def write(self, **values: Any) -> None:
        if self.file is not None:
            self.file.write(json.dumps({k: v for k, v in values.items() if v is not None}) + "\n")
            self.file.flush()

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line cut short by the kill


def stratified_uniform(count: int, generator: torch.Generator) -> torch.Tensor:
    """Draw one number from each of `count` equal parts of [0, 1), (count,), in random order."""
    device = generator.device
    offsets = torch.rand(count, generator=generator, device=device)
    order = torch.randperm(count, generator=generator, device=device)
    return (order + offsets) / count
