"""`faceprior benchmark speed` and `growth`: how fast restoring is, and how its costs grow."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from faceprior.cli.console import console, errors, progress_bar, say
from faceprior.cli.options import DeviceName, DtypeName

if TYPE_CHECKING:
    from faceprior.benchmark.speed.clock import Spread
    from faceprior.benchmark.speed.growth import Growth
    from faceprior.benchmark.speed.run import CaseResult, DuelResult, SpeedReport
    from faceprior.benchmark.speed.start_up import StartUp

_WIDTH = 200  # of a table that goes into a file or a pipe, in characters
_SHOWN_OPERATIONS = 8


class RivalName(str, Enum):
    """Packages to compare with."""

    deepinv = "deepinv"


def speed(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSON file for all figures.", show_default=False)
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="YAML file of options; flags win over it.")] = None,
    prior: Annotated[
        list[str] | None,
        typer.Option(
            help="As for restore, or random:ffhq, random:SIDE; several may be given.", show_default="embedded"
        ),
    ] = None,
    corrector: Annotated[
        list[str] | None, typer.Option(help="auto, none, name, folder or hub id; several.", show_default="auto")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Method or preset, or NAME,option=value,…; several.", show_default="default"),
    ] = None,
    steps: Annotated[list[int] | None, typer.Option(min=1, help="Several.", show_default="method's")] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(min=1, help="Faces restored together; several.", show_default="1")
    ] = None,
    device: Annotated[list[DeviceName] | None, typer.Option(help="Several.", show_default="auto")] = None,
    dtype: Annotated[list[DtypeName] | None, typer.Option(help="Several.", show_default="auto")] = None,
    runs: Annotated[int | None, typer.Option(min=1, help="Measurements of each case.", show_default="5")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch.", show_default="all cores")] = None,
    scale: Annotated[
        float | None, typer.Option(min=2, max=32, help="Resolution over the side of the inputs.", show_default="8")
    ] = None,
    whole_batches: Annotated[
        bool | None,
        typer.Option(help="Networks see whole batches on a CPU too: other last bits.", show_default="no"),
    ] = None,
    start_up: Annotated[bool | None, typer.Option(help="Measure cold starts.", show_default="yes")] = None,
    profile: Annotated[
        bool | None, typer.Option(help="Say what each case spends its time on.", show_default="no")
    ] = None,
    against: Annotated[
        RivalName | None,
        typer.Option(help="Compare with another package's DDRM, DiffPIR and DPS.", show_default="none"),
    ] = None,
) -> None:
    """Measure seconds a face, the share outside the networks, cold starts, and how near it is to the machine's limit.

    Every combination of prior, method, steps, batch, device and number format is measured several times; the limit,
    a large matrix product or convolution, is measured beside each. In a pipe the tables are Markdown.
    """
    if against is not None:  # before diffusers is imported
        from faceprior.benchmark.speed.deepinv_package import import_deepinv

        import_deepinv()
    from faceprior.benchmark.speed.config import SpeedConfig
    from faceprior.benchmark.speed.run import count_runs, run_speed
    from faceprior.training.config import load_config

    flags = {
        "runs": runs,
        "threads": threads,
        "scale": scale,
        "whole_batches": whole_batches,
        "start_up": start_up,
        "profile": profile,
        "against": against.value if against else None,
    }
    chosen = load_config(SpeedConfig, config, flags)
    axes: dict[str, list[Any] | None] = {
        "priors": prior,
        "correctors": corrector,
        "methods": method,
        "steps": steps,
        "batch_sizes": batch_size,
        "devices": [own.value for own in device or ()],
        "dtypes": [own.value for own in dtype or ()],
    }
    given = {name: values for name, values in axes.items() if values}
    chosen = replace(chosen, grids=[{**grid, **given} for grid in chosen.grids])
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with progress_bar(*columns) as progress:
        bar = progress.add_task("measuring", total=count_runs(chosen))
        report = run_speed(chosen, lambda what: progress.update(bar, advance=1, description=what))
    _print(report)
    if output is not None:
        report.write(output, chosen, shlex.join(["faceprior", *sys.argv[1:]]))
        say(console, f"all figures are in {output}")


def _print(report: SpeedReport) -> None:
    target = console if console.is_terminal else Console(width=_WIDTH)
    target.print(str(report.machine), highlight=False)
    for table in (*_case_tables(report.cases), *_duel_table(report.duels), *_start_up_table(report.start_up)):
        _show(target, table)


def _show(target: Console, table: Table) -> None:
    title, table.title = table.title, None  # Rich would wrap it to the table's width
    target.print()
    target.print(title, highlight=False, soft_wrap=True)
    target.print(table)


def _new_table(title: str, *columns: str, words: int) -> Table:
    table = Table(title=title, box=box.SIMPLE if console.is_terminal else box.MARKDOWN)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < words else "right", no_wrap=number < words)
    return table


def _case_tables(cases: list[CaseResult]) -> Iterator[Table]:
    words = ("prior", "corrector", "device", "format", "method")
    if not cases:
        return
    table = _new_table(
        "Restoring: medians, and the range of the runs",
        *words,
        *("evaluations", "batch", "s/face", "faces/s", "s/step", "CPU s/face", "outside", "to float32", "MB"),
        words=len(words),
    )
    limits = _new_table(
        "How near to the limit of the machine",
        *words,
        *("batch", "GFLOP/face", "GFLOP/s", "limit", "of limit", "copy GB/s", "prior", "corrector"),
        words=len(words),
    )
    for case in cases:
        own, networks = case.speed, case.networks
        name = (networks.prior, networks.corrector or "none", networks.device, networks.dtype, case.method)
        table.add_row(
            *name,
            str(own.evaluations),
            str(case.batch_size),
            _range(own.seconds),
            f"{own.faces_per_second:.3g}",
            f"{own.step_seconds.median:.3g}",
            f"{own.cpu_seconds.median:.3g}",
            f"{own.share_outside.median:.1%}",
            "–" if case.float32_db is None else f"{case.float32_db:.1f} dB",
            "–" if own.peak_memory_mb is None else f"{own.peak_memory_mb:.0f}",
        )
        limits.add_row(
            *name,
            str(case.batch_size),
            f"{own.flops / 1e9:.4g}",
            f"{own.flops_per_second.median / 1e9:.4g}",
            f"{own.ceiling_flops.median / 1e9:.4g}",
            f"{own.ceiling_fraction.median:.0%}",
            f"{own.ceiling_bytes.median / 1e9:.3g}",
            *(f"{own.share_of[part]:.1%}" if part in own.share_of else "–" for part in ("prior", "corrector")),
        )
    yield table
    yield limits
    for case in cases:
        if case.operations:
            yield _profile_table(case)


def _profile_table(case: CaseResult) -> Table:
    from faceprior.benchmark.speed.profiler import BOUND_BY, by_kind

    kinds = by_kind(case.operations)
    networks = case.networks
    largest = next(iter(kinds))
    title = (
        f"{networks.prior} {case.method}, {networks.device} {networks.dtype}, batch {case.batch_size}:"
        f" {kinds[largest]:.0%} {largest}, bound by {BOUND_BY[largest]}"
    )
    table = _new_table(title, "operation", "kind", "calls", "s", "share", words=2)
    for operation in case.operations[:_SHOWN_OPERATIONS]:
        table.add_row(
            operation.name, operation.kind, str(operation.calls), f"{operation.seconds:.3g}", f"{operation.share:.1%}"
        )
    for kind, share in kinds.items():
        table.add_row("all", kind, "", "", f"{share:.1%}")
    return table


def _duel_table(duels: list[DuelResult]) -> Iterator[Table]:
    if not duels:
        return
    words = ("prior", "format", "method")
    table = _new_table(
        f"Against {duels[0].duel.rival}, in turns on the same network: above 1 ours is faster",
        *words,
        *("evaluations", "batch", "ours, s/face", "theirs, s/face", "theirs / ours", "outside, ours", "theirs"),
        words=len(words),
    )
    for result in duels:
        duel, networks = result.duel, result.networks
        table.add_row(
            *(networks.prior, networks.dtype, duel.method, str(duel.evaluations), str(result.batch_size)),
            *(_range(duel.ours), _range(duel.theirs), _range(duel.ratio)),
            *(f"{share:.1%}" for share in (duel.ours_outside, duel.theirs_outside)),
        )
    yield table


def _start_up_table(start_up: list[StartUp]) -> Iterator[Table]:
    if not start_up:
        return
    table = _new_table("Cold start, in new processes", "", "s", "CPU s", words=1)
    for own in start_up:
        table.add_row(own.what, _range(own.seconds), f"{own.cpu_seconds.median:.3g}")
    yield table


def _range(spread: Spread) -> str:
    return f"{spread.median:.3g} ({spread.low:.3g}–{spread.high:.3g})"


def growth(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for growth.json and growth.webp.")],
    faces: Annotated[bool, typer.Option(help="1 to 64 faces a batch.")] = True,
    side: Annotated[bool, typer.Option(help="64 to 256 pixels a side.")] = True,
    photos: Annotated[bool, typer.Option(help="10 to 5,000 photographs a folder.")] = True,
    prior: Annotated[
        str, typer.Option(help="Of the batches: as for restore, or random:ffhq.", show_default="embedded")
    ] = "",
) -> None:
    """Measure how time and memory grow with the batch, the resolution and the folder, and fit the exponents."""
    from faceprior.benchmark.speed.growth import PLOT_FILE, grow_faces, grow_folder, grow_side, write_growth
    from faceprior.errors import OptionError
    from faceprior.studies.tables import require_matplotlib

    require_matplotlib()
    wanted = {
        "sides": (side, grow_side),  # first: a process keeps memory that it has used, and large batches use much
        "batches": (faces, lambda: grow_faces(prior=prior)),
        "folders": (photos, grow_folder),
    }
    found: list[Growth] = []
    with errors.status("measuring") as status:
        for what, (chosen, grow) in wanted.items():
            if chosen:
                status.update(f"measuring {what}")
                found.append(grow())
    if not found:
        raise OptionError("everything was left out; leave out fewer of --no-faces, --no-side and --no-photos")
    write_growth(output, found, shlex.join(["faceprior", *sys.argv[1:]]))
    target = console if console.is_terminal else Console(width=_WIDTH)
    for own in found:
        _show(target, _growth_table(own))
    say(console, f"the plot is {output / PLOT_FILE}")


def _growth_table(own: Growth) -> Table:
    title = f"{own.what} ({own.how}): time grows with the power {own.time.exponent:.2f}"
    if own.memory_mb_each is not None:
        title += f", memory by {own.memory_mb_each:.3g} MB each"
    table = _new_table(title, own.what, "s", "s each", "peak MB", words=0)
    for point in own.points:
        memory = "–" if point.peak_memory_mb is None else f"{point.peak_memory_mb:.0f}"
        table.add_row(str(point.size), f"{point.seconds:.3g}", f"{point.seconds / point.size:.3g}", memory)
    return table
