"""How few evaluations of the prior are enough, for each solver and warm start."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path

from faceprior.methods import DEFAULT_PRESET, Preset, find_preset
from faceprior.pipeline import FacePriorPipeline
from faceprior.pipeline.held_out import Damage
from faceprior.studies.held_out import COMPARED, HeldOut, Measured
from faceprior.studies.tables import Row, draw_lines, require_matplotlib, write_csv, write_plot

STEPS = (4, 6, 8, 10, 15, 20, 50)
"""Numbers of steps: DPI asks the prior once in each."""

SOLVERS = ("ddim", "dpmpp-2m", "unipc")

STARTS = (0.1, 0.15, 0.3)
"""Noise levels at which the sampler starts, of T; 1 is pure noise."""

PLOTTED = ("psnr", "identity", "lr_consistency")


def speed_settings(
    pipeline: FacePriorPipeline,
    steps: Sequence[int] = STEPS,
    solvers: Sequence[str] = SOLVERS,
    starts: Sequence[float] = STARTS,
) -> list[Preset]:
    """Return the presets that the study measures: the default, then it with every start, solver and number of steps.

    Raises:
        OptionError: one of them is out of its range, or the prior has not so many levels below a start.
    """
    default = find_preset(DEFAULT_PRESET)
    varied = product(sorted(set(starts)), dict.fromkeys(solvers), sorted(set(steps)))
    settings = [default.with_options(start=start, solver=solver, steps=count) for start, solver, count in varied]
    for preset in settings:
        pipeline.check(preset)
    return list(dict.fromkeys([default, *settings]))


def study_speed(
    pipeline: FacePriorPipeline, held_out: HeldOut, output: Path, damage: Damage, settings: Sequence[Preset]
) -> list[Row]:
    """Restore with each setting; writes `speed.csv` and `speed.png`.

    Args:
        pipeline: prior and corrector.
        held_out: faces.
        output: folder.
        damage: how inputs are made.
        settings: of `speed_settings`; the first is what the others are compared with.

    Returns:
        The table: a row for each setting and estimate. For each figure of `COMPARED` the columns `…_gain` and
        `…_gain_ci95` say by how much it is above the first setting's, face by face.

    Raises:
        OptionError: matplotlib is not installed.
    """
    require_matplotlib()
    rows: list[Row] = []
    first: list[Measured] = []
    for preset in settings:
        options = preset.as_dict()
        setting = {name: options[name] for name in ("start", "solver", "steps")}
        measured = held_out.measure(setting, pipeline, [damage], preset)
        first = first or measured
        rows += [{**one.row, **_gains(one, base)} for one, base in zip(measured, first, strict=True)]
    write_csv(output / "speed.csv", rows)
    samples = sorted((row for row in rows if row["estimate"] == "sample"), key=lambda row: row["steps"])
    lines = [{**row, "start": f"from {row['start']:g} T"} for row in samples]
    draw = (
        partial(draw_lines, rows=lines, x="steps", figure=figure, lines=("solver", "start")) for figure in PLOTTED
    )
    write_plot(output / "speed.png", list(draw))
    return rows


def _gains(one: Measured, base: Measured) -> Row:
    gains = Row()
    for figure in COMPARED:
        gain = None if one is base else one.lead(base, figure)
        gains[f"{figure}_gain"], gains[f"{figure}_gain_ci95"] = (gain.mean, gain.ci95) if gain else (None, None)
    return gains
