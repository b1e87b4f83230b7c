"""Down to which noise level the whole grid should be held, for inputs of different damage."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from faceprior.methods import DEFAULT_PRESET, find_preset
from faceprior.pipeline import FacePriorPipeline
from faceprior.pipeline.held_out import Damage
from faceprior.studies.held_out import COMPARED, HeldOut, Measured
from faceprior.studies.tables import Row, draw_lines, require_matplotlib, write_csv, write_plot

INPUTS = {"mild": Damage("bicubic", 4), "medium": Damage("gfpgan", 8), "heavy": Damage("codeformer", 16)}
"""Inputs by name."""

TAUS = (0.0, 0.1, 0.15, 0.2, 0.3)
"""Values of τ; from `START` on the whole grid is never held."""

START, STEPS = 0.3, 20
"""Above the default preset's own start, below which most of these τ would be one and the same."""

PLOTTED = ("psnr", "identity", "lr_consistency")


def study_tau(
    pipeline: FacePriorPipeline, held_out: HeldOut, output: Path, taus: Sequence[float] = TAUS
) -> list[Row]:
    """Restore each input with each τ, from higher up than the default preset; writes `tau.csv` and `tau.png`.

    Args:
        pipeline: prior and corrector.
        held_out: faces.
        output: folder.
        taus: values of τ, as fractions of T.

    Returns:
        The table: a row for each input, τ and estimate. For each figure of `COMPARED` a column `…_place` says
        "best" for the best τ of an input and estimate, and "tied" where the 95 % interval of the difference to it,
        face by face, holds 0.

    Raises:
        OptionError: matplotlib is not installed, or a τ is out of its range.
    """
    require_matplotlib()
    preset = find_preset(DEFAULT_PRESET).with_options(steps=STEPS, start=START)
    presets = {tau: preset.with_options(tau=tau) for tau in sorted(set(taus))}
    rows: list[Row] = []
    for name, damage in INPUTS.items():
        measured = [
            one
            for tau, chosen in presets.items()
            for one in held_out.measure({"input": name, "tau": tau}, pipeline, [damage], chosen)
        ]
        rows += [{**one.row, **_places(one, measured)} for one in measured]
    write_csv(output / "tau.csv", rows)
    write_plot(
        output / "tau.png",
        [partial(draw_lines, rows=rows, x="tau", figure=figure, lines=("input",)) for figure in PLOTTED],
    )
    return rows


def _places(one: Measured, measured: Sequence[Measured]) -> Row:
    places: Row = {}
    rivals = [other for other in measured if other.summary.case == one.summary.case]
    for figure in COMPARED:
        places[f"{figure}_place"] = ""
        if figure not in one.values or one.summary.case.estimate == "bicubic":
            continue
        best = max(rivals, key=lambda rival: rival.summary.means[figure].mean)
        lead = best.lead(one, figure)
        if best is one:
            places[f"{figure}_place"] = "best"
        elif lead is not None and lead.ci95 is not None and lead.mean <= lead.ci95:
            places[f"{figure}_place"] = "tied"
    return places
