"""`faceprior study`: open questions, answered with a CSV file and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from faceprior.cli import options
from faceprior.cli.console import console, say
from faceprior.cli.evaluate import estimate_text, load_embedder, table_console
from faceprior.cli.options import DeviceName, DtypeName
from faceprior.cli.progress import faces_progress

if TYPE_CHECKING:
    from faceprior.pipeline import FacePriorPipeline
    from faceprior.studies.held_out import HeldOut
    from faceprior.studies.tables import Row

study_app = typer.Typer(help="Answer open questions with figures: a CSV file and a plot each.", no_args_is_help=True)

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the CSV file and the plot.")]

_DIGITS = {"psnr": 2, "lr": 1}  # by the first word of a figure's name; 3 for the others
_MARKS = {"best": "* ", "tied": "= ", "": ""}


@study_app.command("tau")
def tau(
    data: options.Data,
    output: Output,
    taus: Annotated[
        list[float] | None,
        typer.Option("--tau", min=0, max=1, help="τ; several may be given.", show_default="0, 0.1, 0.15, 0.2, 0.3"),
    ] = None,
    prior: options.Prior = None,
    adm_config: options.ADMConfigFile = None,
    corrector: options.Corrector = "auto",
    faces: options.Faces = 32,
    samples: options.Samples = 2,
    seed: options.Seed = 0,
    device: options.Device = DeviceName.auto,
    dtype: options.Dtype = DtypeName.auto,
    batch_size: options.BatchSize = 8,
) -> None:
    """Find the best τ for mild (×4), medium (×8 after the gfpgan chain) and heavy damage (×16 after codeformer's)."""
    from faceprior.studies.tau import INPUTS, TAUS, study_tau

    pipeline = options.load_pipeline(prior, adm_config, corrector, device, dtype)
    held_out = _held_out([pipeline], data, faces, samples, seed, batch_size)
    chosen = taus or TAUS
    with faces_progress(len(held_out.faces) * len(INPUTS) * len(set(chosen))) as advance:
        rows = study_tau(pipeline, held_out.reporting(advance), output, chosen)
    table = study_table(rows, ("tau",), ("psnr", "ssim", "lr_consistency", "identity", "frechet"), samples)
    table.caption = "* best τ, = no worse than it within the 95 % interval of the difference face by face"
    _show(table, output, "tau")


@study_app.command("stride")
def stride(
    data: options.Data,
    output: Output,
    scale: Annotated[float, typer.Option(min=2, max=32, help="Resolution over the side of the inputs.")] = 8.0,
    prior: options.Prior = None,
    adm_config: options.ADMConfigFile = None,
    corrector: options.Corrector = "auto",
    faces: options.Faces = 32,
    samples: options.Samples = 2,
    seed: options.Seed = 0,
    device: options.Device = DeviceName.auto,
    dtype: options.Dtype = DtypeName.auto,
    batch_size: options.BatchSize = 8,
) -> None:
    """Hold every pixel, every 2nd, 4th, 8th: k against quality overall and around eyes, mouth and skin.

    Without the corrector, and with it where it fits: a corrector serves the multiples of its own stride.
    """
    from faceprior.evaluation.regions import REGIONS
    from faceprior.pipeline.held_out import Damage
    from faceprior.studies.stride import STRIDES, corrected_strides, study_stride

    pipeline = options.load_pipeline(prior, adm_config, corrector, device, dtype)
    held_out = _held_out([pipeline], data, faces, samples, seed, batch_size)
    with faces_progress(len(held_out.faces) * (len(STRIDES) + len(corrected_strides(pipeline)))) as advance:
        rows = study_stride(pipeline, held_out.reporting(advance), output, Damage("bicubic", scale))
    regions = (f"psnr_{region}" for region in REGIONS)
    _show(study_table(rows, ("stride",), ("psnr", "ssim", "identity", *regions), samples), output, "stride")


@study_app.command("corrector")
def corrector(
    priors: Annotated[
        list[str],
        typer.Argument(help="Embedded names, diffusers folders, ADM checkpoints, hub ids.", show_default=False),
    ],
    data: options.Data,
    output: Output,
    corrector: options.Corrector = "auto",
    scale: Annotated[list[float] | None, options.scales("4, 8, 16")] = None,
    faces: options.Faces = 32,
    samples: options.Samples = 2,
    seed: options.Seed = 0,
    device: options.Device = DeviceName.auto,
    dtype: options.Dtype = DtypeName.auto,
    batch_size: options.BatchSize = 8,
) -> None:
    """Restore on several priors with and without the same corrector, and compare face by face."""
    from faceprior.studies.corrector import SCALES, study_corrector

    pipelines = {name: options.load_pipeline(name, None, corrector, device, dtype) for name in dict.fromkeys(priors)}
    held_out = _held_out(list(pipelines.values()), data, faces, samples, seed, batch_size)
    chosen = scale or SCALES
    with faces_progress(len(held_out.faces) * len(pipelines) * len(set(chosen)) * 2) as advance:
        rows = study_corrector(pipelines, held_out.reporting(advance), output, chosen)
    figures = ("psnr", "psnr_gain", "ssim", "lr_consistency", "identity", "identity_gain", "frechet")
    table = study_table(rows, ("prior",), figures, samples)
    table.caption = "± half a 95 % interval of the difference face by face"
    _show(table, output, "corrector")


@study_app.command("speed")
def speed(
    data: options.Data,
    output: Output,
    steps: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Steps; several may be given.", show_default="4, 6, 8, 10, 15, 20, 50"),
    ] = None,
    solver: Annotated[
        list[str] | None,
        typer.Option(help="Rule of a step; several may be given.", show_default="ddim, dpmpp-2m, unipc"),
    ] = None,
    start: Annotated[
        list[float] | None,
        typer.Option(
            min=0, max=1, help="First noise level, of T; several may be given.", show_default="0.1, 0.15, 0.3"
        ),
    ] = None,
    scale: Annotated[float, typer.Option(min=2, max=32, help="Resolution over the side of the inputs.")] = 8.0,
    prior: options.Prior = None,
    adm_config: options.ADMConfigFile = None,
    corrector: options.Corrector = "auto",
    faces: options.Faces = 32,
    samples: options.Samples = 1,
    seed: options.Seed = 0,
    device: options.Device = DeviceName.auto,
    dtype: options.Dtype = DtypeName.auto,
    batch_size: options.BatchSize = 8,
) -> None:
    """Find how few steps are enough, for each solver and start, and compare with the default preset face by face."""
    from faceprior.pipeline.held_out import Damage
    from faceprior.studies.speed import SOLVERS, STARTS, STEPS, speed_settings, study_speed

    pipeline = options.load_pipeline(prior, adm_config, corrector, device, dtype)
    solvers = solver or SOLVERS
    settings = speed_settings(pipeline, steps or STEPS, solvers, start or STARTS)
    held_out = _held_out([pipeline], data, faces, samples, seed, batch_size)
    with faces_progress(len(held_out.faces) * len(settings)) as advance:
        rows = study_speed(pipeline, held_out.reporting(advance), output, Damage("bicubic", scale), settings)
    figures = ("psnr", "psnr_gain", "ssim", "lr_consistency", "identity", "identity_gain", "frechet")
    table = study_table(rows, ("start", "solver", "steps"), figures, samples)
    table.caption = "gains over the default preset, in the first rows, with half a 95 % interval face by face"
    _show(table, output, "speed")


def _held_out(
    pipelines: Sequence[FacePriorPipeline], data: Path, faces: int, samples: int, seed: int, batch_size: int
) -> HeldOut:
    from faceprior.studies.held_out import HeldOut
    from faceprior.studies.tables import require_matplotlib
    from faceprior.training.shards import PackedFaces

    require_matplotlib()
    packed = PackedFaces(data, "val")
    for pipeline in pipelines:
        packed.check_size(pipeline.resolution)
    return HeldOut(packed.batch(packed.spread(faces)), samples, seed, batch_size, load_embedder(*pipelines))


def study_table(rows: Sequence[Row], settings: Sequence[str], figures: Sequence[str], samples: int) -> Table:
    """Lay out the table of a study.

    Args:
        rows: of the study.
        settings: columns that distinguish its settings; bicubic, the same in each, is shown once an input.
        figures: columns of the figures, `LABELS` names them; `…_place` marks them, `…_gain_ci95` is their interval.
        samples: samples of each face.
    """
    from faceprior.studies.tables import LABELS

    table = Table(box=box.SIMPLE)
    for name in ("input", *settings, "estimate", "corrector"):
        table.add_column(LABELS.get(name, name), no_wrap=True)
    for name in figures:
        table.add_column(LABELS[name], justify="right")
    shown, earlier = set[str](), ""
    for row in rows:
        given = f"×{row['scale']:g} {row['degradation']}"
        if row["estimate"] == "bicubic" and given in shown:
            continue
        shown.add(given)
        if earlier not in ("", given):
            table.add_section()
        table.add_row(
            given if given != earlier else "",
            *("" if row["estimate"] == "bicubic" else _setting_text(row[name]) for name in settings),
            estimate_text(row["estimate"], samples),
            row["corrector"],
            *(_figure_text(row, name) for name in figures),
        )
        earlier = given
    return table


def _setting_text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _figure_text(row: Row, name: str) -> str:
    value, is_gain = row[name], name.endswith("_gain")
    if value is None:
        return "" if is_gain else "–"
    digits = _DIGITS.get(name.split("_", maxsplit=1)[0], 3)
    if is_gain:
        interval = row[f"{name}_ci95"]
        return f"{value:+.{digits}f}" + ("" if interval is None else f" ±{interval:.{digits}f}")
    return _MARKS[row.get(f"{name}_place", "")] + f"{value:.{digits}f}"


def _show(table: Table, output: Path, study: str) -> None:
    table_console().print(table)
    say(console, f"figures are in {output / study}.csv, the plot is {output / study}.png")
