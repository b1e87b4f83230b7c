"""What each step of a training sees, made ahead of it in worker processes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from faceprior.images import to_uint8
from faceprior.training.config import TrainConfig
from faceprior.training.shards import PackedFaces

Example = Callable[[torch.Tensor, torch.Generator], tuple[torch.Tensor, ...]]
"""Makes the pictures that a training sees of one face, (3, R, R) in [-1, 1] all; pickled to other processes."""

_BATCHES_AHEAD = 4  # of each worker


class Batches(Dataset[list[torch.Tensor]]):
    """Item n is one process's share of step n's batch, the same whenever it is asked for.

    Which faces step n sees, and which of them flipped, is drawn from a generator seeded by (seed, n); what the
    example makes of the i-th of them from one seeded by (seed, n, i). So neither the number of processes nor that of
    workers matters, and a run that was killed and resumed sees what an uninterrupted one sees.
    """

    def __init__(
        self, faces: PackedFaces, config: TrainConfig, example: Example | None, process: int = 0, processes: int = 1
    ) -> None:
        self.faces, self.config, self.example = faces, config, example
        self.weights = faces.balanced_weights(config.balance)
        count = config.batch_size // processes
        self.share = range(process * count, (process + 1) * count)

    def __getitem__(self, step: int) -> list[torch.Tensor]:
        """Pictures as uint8, (B, 3, R, R) each."""
        generator = seeded(self.config.seed, step)
        indices = torch.multinomial(self.weights, self.config.batch_size, replacement=True, generator=generator)
        flipped = torch.rand(self.config.batch_size, generator=generator) < self.config.flip
        share = slice(self.share.start, self.share.stop)
        pixels, flipped = self.faces.pixels(indices[share].tolist()), flipped[share]
        pixels[flipped] = pixels[flipped].flip(-1)
        if self.example is None:
            return [pixels]
        examples = [
            self.example(face.float() / 127.5 - 1.0, seeded(self.config.seed, step, place))
            for place, face in zip(self.share, pixels, strict=True)
        ]
        return [to_uint8(torch.stack(pictures)) for pictures in zip(*examples, strict=True)]

    def from_step(self, step: int, workers: int, *, pinned: bool) -> Iterator[list[torch.Tensor]]:
        """Iterate over the batches of a run from step `step` on, made ahead by `workers` processes, if any."""
        loader: DataLoader[list[torch.Tensor]] = DataLoader(
            self,
            batch_size=None,
            sampler=range(step, self.config.steps),
            num_workers=workers,
            prefetch_factor=_BATCHES_AHEAD if workers else None,
            pin_memory=pinned,
            worker_init_fn=_leave_stopping_to_the_trainer,
            generator=torch.Generator(),  # else the global one is drawn from
        )
        return iter(loader)


def seeded(*numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator whose seed depends on all of these numbers."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator(device).manual_seed(seed)


def _leave_stopping_to_the_trainer(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the terminal
