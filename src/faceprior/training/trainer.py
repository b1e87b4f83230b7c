"""The one training loop, for priors and correctors, on a CPU or on GPUs alike (through accelerate).

Steps t and noise of step n are drawn from a generator seeded by (seed, n, process), its batch as
`faceprior.training.batches` says, so a run that was killed and resumed sees exactly what an uninterrupted one sees.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, TextIO

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
from faceprior.training.batches import Batches, Example, seeded
from faceprior.training.config import TrainConfig
from faceprior.training.muon import Muon
from faceprior.training.shards import PackedFaces

KEPT_CHECKPOINTS = 2

_MOST_WORKERS = 16  # of one GPU
_READ_TOGETHER = {"cuda": 10}  # losses: a GPU has to wait for each reading


class Task(Protocol):
    """What is trained.

    Attributes:
        network: with fresh weights or those to start from.
        example: what is made of each face; None: the face as it is.
    """

    network: nn.Module
    example: Example | None

    def prepare(self) -> None:
        """Do what fresh weights need before the first step; a resumed run has the outcome in its checkpoint."""

    def loss(self, network: nn.Module, pictures: Sequence[torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        """Mean loss of a batch of examples: what `example` makes of each face, (B, 3, R, R) in [-1, 1] each."""

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
    tell = on_step if main else lambda *_: None
    learner = _Learner(task.network, config, accelerator)
    step = learner.load(newest) if newest else 0
    held_out: dict[str, float] = {}
    if main:
        _write_config(config, output)
    accelerator.init_trackers("tensorboard")
    batches = Batches(faces, config, task.example, accelerator.process_index, accelerator.num_processes)
    coming = batches.from_step(step, _workers(config, accelerator), pinned=accelerator.device.type == "cuda")
    learner.network.train()
    limit = config.minutes * 60 or math.inf
    at_once = _READ_TOGETHER.get(accelerator.device.type, 1)
    losses, stopping = list[torch.Tensor](), False
    try:
        with _stop_signals() as came, _log(output, step, accelerator) as (log, before):
            watch, known = _Stopwatch(accelerator.device, before), before
            done = step >= config.steps or known >= limit
            while not (done or stopping):
                losses.append(learner.step(task, next(coming), step, known))
                step += 1
                done = step == config.steps
                evaluating, saving = step % config.evaluate_every == 0, step % config.checkpoint_every == 0
                if len(losses) < at_once and not (evaluating or saving or done):
                    continue
                values, stopping, known = _shared(accelerator, losses, came=bool(came), seconds=watch.seconds)
                losses, done, figures = [], done or known >= limit, None
                if evaluating or done:
                    with watch.stopped(), learner.averaged() as network:
                        if main:
                            held_out = figures = _evaluate(task, network, config, output, step, command)
                for number, value in enumerate(values, step + 1 - len(values)):
                    own = figures if number == step else None
                    line = {"step": number, "loss": value, "seconds": round(known, 1)}
                    print(json.dumps({**line, "held_out": own} if own else line), file=log, flush=True)
                    accelerator.log({"loss": value, **(own or {})}, step=number)
                    tell(number, value, own)
                if saving or done or stopping:
                    with watch.stopped():
                        learner.save(checkpoints, step)
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


def _write_config(config: TrainConfig, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.yaml").write_text(yaml.safe_dump(config.model_dump(), sort_keys=False), encoding="utf-8")


def _workers(config: TrainConfig, accelerator: Accelerator) -> int:
    if config.workers is not None:
        return config.workers
    if accelerator.device.type == "cpu":
        return 0  # they would take the cores from the step
    return min(_MOST_WORKERS, max(1, (os.cpu_count() or 1) // accelerator.num_processes - 1))


def _accelerator(config: TrainConfig, output: Path) -> Accelerator:
    cpu = not torch.cuda.is_available()
    precision = config.mixed_precision
    if precision == "auto":
        precision = "bf16" if choose_dtype("auto", choose_device()) is torch.bfloat16 else "no"
    if cpu and precision == "fp16":
        raise OptionError("mixed_precision fp16 needs a GPU; choose bf16 or no")
    # without this a second training in one process is refused another precision
    AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001
    torch.backends.cudnn.benchmark = True  # every step has the same shapes
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
    samples = step * config.batch_size
    training = {"command": command, "steps": step, "samples": samples, "config": config.model_dump()}
    figures = {name: round(value, 3) for name, value in held_out.items()}
    task.export(network, output / "weights", training, figures)
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
        self.ema = EMAModel(self.parameters, decay=config.ema_decay, foreach=True)
        model = torch.compile(self.network) if config.compile else self.network
        self.model, *self.optimizers = accelerator.prepare(model, *optimizers)
        accelerator.register_for_checkpointing(self.ema)

    def step(self, task: Task, pictures: Sequence[torch.Tensor], step: int, seconds: float) -> torch.Tensor:
        """Take one optimiser step on uint8 pictures, `seconds` into the run; returns the loss of this process."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.config.learning_rate * self.config.learning_rate_factor(step, seconds)
        device = self.accelerator.device
        images = [picture.to(device, non_blocking=True).float() / 127.5 - 1.0 for picture in pictures]
        generator = seeded(self.config.seed, step, self.accelerator.process_index, device=device)
        loss = task.loss(self.model, images, generator)
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


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Take note of SIGINT and SIGTERM, so that the step under way can end; a second one acts as ever."""
    came: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, _: object) -> None:
        came.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    if threading.current_thread() is threading.main_thread():  # no other thread may set handlers
        before.update((number, signal.signal(number, note)) for number in (signal.SIGINT, signal.SIGTERM))
    try:
        yield came
    finally:
        restore()


class _Stopwatch:
    """Seconds of computing: of one thread's share of the processor on a CPU, which others may be using too."""

    def __init__(self, device: torch.device, seconds: float) -> None:
        self._on_cpu = device.type == "cpu"
        self._begun = self._now() - seconds

    def _now(self) -> float:
        return time.process_time() / torch.get_num_threads() if self._on_cpu else time.monotonic()

    @property
    def seconds(self) -> float:
        return self._now() - self._begun

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Do not count what is done inside."""
        stopped = self._now()
        yield
        self._begun += self._now() - stopped


def _shared(
    accelerator: Accelerator, losses: Sequence[torch.Tensor], *, came: bool, seconds: float
) -> tuple[list[float], bool, float]:
    """The mean loss of each step, whether a signal came to any process, and the mean seconds of computing.

    The processes tell each other, so that all stop at the same step.
    """
    own = losses[0].new_tensor([came, seconds], dtype=torch.float32)
    news = accelerator.reduce(torch.cat([torch.stack(list(losses)).float(), own]), "mean").tolist()
    return news[:-2], news[-2] > 0, news[-1]


@contextmanager
def _log(output: Path, step: int, accelerator: Accelerator) -> Iterator[tuple[TextIO, float]]:
    """Open the log as it was at a step, and say how many seconds were computed until then.

    Lines that a killed run wrote after its last checkpoint are dropped.
    """
    path, kept, seconds = output / "log.jsonl", list[str](), 0.0
    for line in path.read_text("utf-8").splitlines(keepends=True) if path.exists() else ():
        try:
            values = json.loads(line)
        except ValueError:  # cut short by the kill
            continue
        if values["step"] <= step:
            kept.append(line)
            seconds = values["seconds"]
    accelerator.wait_for_everyone()  # all have read it
    with (path if accelerator.is_main_process else Path(os.devnull)).open("w", encoding="utf-8") as file:
        file.writelines(kept)
        yield file, seconds


def stratified_uniform(count: int, generator: torch.Generator) -> torch.Tensor:
    """Draw one number from each of `count` equal parts of [0, 1), (count,), in random order."""
    device = generator.device
    offsets = torch.rand(count, generator=generator, device=device)
    order = torch.randperm(count, generator=generator, device=device)
    return (order + offsets) / count
