"""What a cold start costs: everything from the start of a new process."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from faceprior.benchmark.speed.clock import Spread
from faceprior.benchmark.speed.process import IMPORT, LOAD, ProcessRun, run_command, run_statements
from faceprior.images import resize, to_pil

_FACE_SIDE = 16


@dataclass(frozen=True)
class StartUp:
    """Cold start of one thing, in new processes; files are in the system's cache.

    Attributes:
        what: it is.
        seconds: until it is done: of the import alone for `import faceprior`, else of the whole process.
        cpu_seconds: processor time of the process.
    """

    what: str
    seconds: Spread
    cpu_seconds: Spread


def measure_start_up(runs: int, on_run: Callable[[], object] = lambda: None) -> list[StartUp]:
    """Measure import, loading of the embedded networks, and the first face of `faceprior restore`.

    Args:
        runs: of each.
        on_run: called after each run.
    """
    with tempfile.TemporaryDirectory() as folder:
        face, output = Path(folder) / "face.png", Path(folder) / "restored"
        coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
        to_pil(resize(coarse, _FACE_SIDE)[0].clamp(-1, 1)).save(face)
        restore = ["restore", str(face), "--output", str(output)]
        tasks: dict[str, Callable[[], ProcessRun]] = {
            "import faceprior": lambda: run_statements(IMPORT),
            "faceprior --help": lambda: run_command(["--help"]),
            "load the networks": lambda: run_statements(LOAD),
            "first face of faceprior restore": lambda: run_command(restore),
        }
        found = []
        for what, task in tasks.items():
            task()  # brings the files into the system's cache
            on_run()
            measured = []
            for _ in range(runs):
                measured.append(task())
                on_run()
            only_statements = what == "import faceprior"
            found.append(
                StartUp(
                    what,
                    Spread.of([run.seconds if only_statements else run.process_seconds for run in measured]),
                    Spread.of([run.cpu_seconds for run in measured]),
                )
            )
    return found


TASKS = 4
"""How many things `measure_start_up` measures."""
