"""What one corrector brings to different priors: it never saw any of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from faceprior.errors import OptionError
from faceprior.evaluation.figures import Case
from faceprior.methods import DEFAULT_PRESET, find_preset
from faceprior.pipeline import FacePriorPipeline
from faceprior.pipeline.held_out import Damage
from faceprior.studies.held_out import COMPARED, HeldOut, Measured
from faceprior.studies.tables import Row, draw_lines, require_matplotlib, write_csv, write_plot

SCALES = (4.0, 8.0, 16.0)

PLOTTED = ("psnr", "identity")


def study_corrector(
    pipelines: Mapping[str, FacePriorPipeline], held_out: HeldOut, output: Path, scales: Sequence[float] = SCALES
) -> list[Row]:
    """Restore with each prior, with and without the corrector; writes `corrector.csv` and `corrector.png`.

    Args:
        pipelines: priors by name, each with the same corrector.
        held_out: faces.
        output: folder.
        scales: R/n of the inputs, which are reduced bicubically.

    Returns:
        The table: for each scale a row for bicubic, then one for each prior, estimate and use of the corrector. For
        each figure of `COMPARED` the columns `…_gain` and `…_gain_ci95` say, in rows with the corrector, by how much
        it is above the one without, face by face.

    Raises:
        OptionError: matplotlib is not installed, there is no corrector, or not the same one for every prior.
    """
    require_matplotlib()
    if len({card.sha256 if (card := pipeline.corrector_card) else None for pipeline in pipelines.values()}) > 1:
        raise OptionError("these priors come with different correctors, or without; name one with --corrector")
    preset, rows = find_preset(DEFAULT_PRESET), list[Row]()
    damages = [Damage("bicubic", scale) for scale in sorted(set(scales))]
    for name, pipeline in pipelines.items():
        measured = held_out.measure({"prior": name}, pipeline, damages, preset, without_corrector=True)
        by_case = {one.summary.case: one for one in measured}
        fresh = [one for one in measured if not (rows and _is_bicubic(one))]  # no prior takes part: once is enough
        rows += [{**one.row, **_gains(one, by_case), "prior": "" if _is_bicubic(one) else name} for one in fresh]
    rows.sort(key=lambda row: row["scale"])
    write_csv(output / "corrector.csv", rows)
    lines = ("prior", "corrector")
    write_plot(
        output / "corrector.png",
        [
            *(partial(draw_lines, rows=rows, x="scale", figure=figure, lines=lines) for figure in PLOTTED),
            partial(draw_lines, rows=rows, x="scale", figure="psnr_gain", lines=lines, intervals=True),
        ],
    )
    return rows


def _is_bicubic(one: Measured) -> bool:
    return one.summary.case.estimate == "bicubic"


def _gains(one: Measured, by_case: Mapping[Case, Measured]) -> Row:
    case, gains = one.summary.case, Row()
    without = by_case[replace(case, corrector=False)] if case.corrector else None
    for figure in COMPARED:
        gain = one.lead(without, figure) if without else None
        gains[f"{figure}_gain"], gains[f"{figure}_gain_ci95"] = (gain.mean, gain.ci95) if gain else (None, None)
    return gains
