"""How time and memory grow: with the faces of a batch, the side of a face, and the photographs of a folder."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

import faceprior
from faceprior.benchmark.memory import PeakMemory
from faceprior.benchmark.speed.clock import clock_of
from faceprior.benchmark.speed.machine import this_machine
from faceprior.benchmark.speed.measure import make_work
from faceprior.benchmark.speed.process import run_command
from faceprior.benchmark.speed.subjects import RANDOM, load_subject
from faceprior.errors import OptionError, OutputError
from faceprior.methods import DEFAULT_PRESET, find_preset
from faceprior.studies.tables import require_matplotlib, write_plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FACES = (1, 2, 4, 8, 16, 32, 64)
SIDES = (64, 96, 128, 192, 256)
PHOTOS = (10, 50, 250, 1000, 5000)

GROWTH_FILE, PLOT_FILE = "growth.json", "growth.webp"

_STEPS = 4  # of the sampler: what is measured is growth, and every step costs the same
_FACE_SIDE = 16
_CHEAP_METHOD = "bicubic"  # so that reading, writing and book-keeping are what is seen


@dataclass(frozen=True)
class Point:
    """One measurement.

    Attributes:
        size: number of faces, pixels a side, or number of photographs.
        seconds: of the whole, the best of the runs.
        peak_memory_mb: None where the system does not tell.
    """

    size: int
    seconds: float
    peak_memory_mb: float | None


@dataclass(frozen=True)
class Fit:
    """cost = fixed + factor · size^exponent, with the least relative error.

    Attributes:
        fixed: at least 0.
        factor: at least 0.
        exponent: 1 is proportional.
    """

    fixed: float
    factor: float
    exponent: float

    def __call__(self, size: float) -> float:
        """Return the cost of a size."""
        return self.fixed + self.factor * size**self.exponent


@dataclass(frozen=True)
class Growth:
    """How something grows.

    Attributes:
        what: "faces a batch", "pixels a side" or "photographs a folder".
        how: what was run.
        points: measurements, the smallest first.
        time: fitted to the seconds.
        memory_mb_each: slope of the peak memory between the smallest and the largest; None if it is not known.
    """

    what: str
    how: str
    points: list[Point]
    time: Fit
    memory_mb_each: float | None


def grow_faces(sizes: Sequence[int] = FACES, prior: str = "", runs: int = 2) -> Growth:
    """Restore batches of more and more faces; networks see the whole batch at once."""
    pipeline = load_subject(prior, "auto", "auto", "auto")
    preset = find_preset(DEFAULT_PRESET).with_options(steps=_STEPS)
    points = [
        _best(make_work(pipeline, preset, size, 8.0, whole=True), size, pipeline.prior.device, runs) for size in sizes
    ]
    how = f"{pipeline.prior.card.name}, preset {DEFAULT_PRESET} with {_STEPS} steps, whole batches"
    return grown("faces a batch", how, points)


def grow_side(sizes: Sequence[int] = SIDES, runs: int = 2) -> Growth:
    """Restore one face with a network of one architecture and random weights for larger and larger pictures."""
    preset = find_preset(DEFAULT_PRESET).with_options(steps=_STEPS)
    points = []
    for size in sizes:
        pipeline = load_subject(f"{RANDOM}{size}", "none", "auto", "auto")
        points.append(_best(make_work(pipeline, preset, 1, 8.0), size, pipeline.prior.device, runs))
    return grown("pixels a side", f"a small U-Net, preset {DEFAULT_PRESET} with {_STEPS} steps", points)


def grow_folder(sizes: Sequence[int] = PHOTOS) -> Growth:
    """Run `faceprior restore` on more and more aligned faces of 16×16 pixels, each time in a new process."""
    points = []
    with tempfile.TemporaryDirectory() as folder:
        faces = _write_faces(Path(folder) / "faces", max(sizes))
        for size in sizes:
            output = Path(folder) / f"restored-{size}"
            given = map(str, faces[:size])
            run = run_command(["restore", *given, "--output", str(output), "--method", _CHEAP_METHOD])
            points.append(Point(size, run.seconds, run.peak_memory_mb))
    return grown("photographs a folder", f"faceprior restore --method {_CHEAP_METHOD}", points)


def _best(work: Callable[[], object], size: int, device: torch.device, runs: int) -> Point:
    work()
    clock, memory, seconds = clock_of(device), PeakMemory(device), []
    for _ in range(runs):
        start = clock.mark()
        work()
        seconds.append(clock.seconds(start, clock.mark()))
    return Point(size, min(seconds), memory.megabytes())


def _write_faces(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = [folder / f"{number:05d}.png" for number in range(count)]
    for path in paths:
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((_FACE_SIDE, _FACE_SIDE), Image.Resampling.BICUBIC).save(path)
    return paths


def grown(what: str, how: str, points: list[Point]) -> Growth:
    """Fit the growth of measurements.

    Raises:
        OptionError: there are fewer than three.
    """
    if len(points) < 3:
        raise OptionError(f"{what}: {len(points)} sizes; a growth needs at least three")
    first, last = points[0], points[-1]
    slope = None
    if first.peak_memory_mb is not None and last.peak_memory_mb is not None:
        slope = (last.peak_memory_mb - first.peak_memory_mb) / (last.size - first.size)
    return Growth(what, how, points, fit([p.size for p in points], [p.seconds for p in points]), slope)


def fit(sizes: Sequence[float], costs: Sequence[float]) -> Fit:
    """Fit fixed + factor · size^exponent to at least three positive costs."""
    size, cost = np.asarray(sizes, float), np.asarray(costs, float)
    best, least = Fit(0.0, 0.0, 0.0), float("inf")
    for exponent in np.linspace(0.05, 3, 296):
        grown_part = size**exponent
        columns = np.stack([np.ones_like(size), grown_part], 1) / cost[:, None]  # relative errors
        (fixed, factor), *_ = np.linalg.lstsq(columns, np.ones_like(cost), rcond=None)
        if fixed < 0:  # through the origin then
            fixed, relative = 0.0, grown_part / cost
            factor = relative.sum() / (relative**2).sum()
        error = float((((fixed + factor * grown_part) / cost - 1) ** 2).sum())
        if factor >= 0 and error < least:
            best, least = Fit(float(fixed), float(factor), round(float(exponent), 2)), error
    return best


def write_growth(folder: Path, found: Sequence[Growth], command: str) -> None:
    """Write `growth.json` and the plot.

    Raises:
        OptionError: matplotlib is not installed.
        OutputError: the folder cannot be written to.
    """
    require_matplotlib()
    values = {
        "faceprior": faceprior.__version__,
        "command": command,
        "machine": asdict(this_machine()),
        "growth": [asdict(own) for own in found],
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / GROWTH_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        write_plot(folder / PLOT_FILE, [lambda axes, own=own: _draw(axes, own) for own in found])  # type: ignore[misc]
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written to ({error.strerror}); choose another --output") from error


def _draw(axes: Axes, growth: Growth) -> None:
    sizes = [point.size for point in growth.points]
    axes.loglog(sizes, [point.seconds for point in growth.points], "o", color="C0", label="seconds")
    curve = np.geomspace(sizes[0], sizes[-1], 50)
    axes.loglog(curve, [growth.time(size) for size in curve], "-", color="C0", label="fixed + factor · size^p")
    axes.set_title(f"{growth.what}: p = {growth.time.exponent:.2f}", fontsize="medium")
    axes.set_xlabel(growth.what)
    axes.set_ylabel("seconds")
    memory = [point.peak_memory_mb for point in growth.points]
    if None not in memory:
        beside = axes.twinx()
        beside.plot(sizes, memory, "s--", color="C1", label="peak memory")  # type: ignore[arg-type]
        beside.set_ylabel("peak memory, MB", color="C1")
        beside.set_ylim(bottom=0)
        axes.plot([], [], "s--", color="C1", label="peak memory, MB")
