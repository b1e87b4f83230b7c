"""`faceprior benchmark`: methods compared on sets of faces."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich import box
from rich.console import Console
from rich.table import Table
from typer import Option

from faceprior.cli import options
from faceprior.cli.console import console, end_with, errors, progress_bar, say

if TYPE_CHECKING:
    from faceprior.benchmark.summary import MethodSummary

_WIDTH = 240  # of a table that goes into a file or a pipe, in characters


def benchmark(
    output: Annotated[Path, Option("--output", "-o", help="Folder of the results; the same one goes on.")] = (
        Path("benchmark")
    ),
    config: Annotated[Path | None, Option("--config", help="YAML file of options; flags win over it.")] = None,
    data: Annotated[
        list[str] | None, Option(help="Folder of faces, packed or not; several are one set.", show_default="config's")
    ] = None,
    faces: Annotated[
        int | None, Option(help="Number of faces, spread over the set; 0 takes all.", show_default="64")
    ] = None,
    methods: Annotated[
        str | None,
        Option(help="NAME or NAME,option=value,…,label=…, and further ones after a comma.", show_default="default"),
    ] = None,
    scales: Annotated[str | None, Option(help="R/n of the inputs.", show_default="8")] = None,
    degradations: Annotated[
        str | None,
        Option(help="bicubic, noise-SIGMA, gfpgan, …, low-light, occlusion-…, or none.", show_default="bicubic"),
    ] = None,
    seeds: Annotated[str | None, Option(help="Seeds of damage and noise.", show_default="0")] = None,
    samples: Annotated[
        int | None, Option(help="Restorations of each face; of several, their mean too.", show_default="1")
    ] = None,
    metrics: Annotated[str | None, Option(help="Names of figures.", show_default="all")] = None,
    by: Annotated[
        str | None, Option(help="Also tables by source or another label of the faces.", show_default="none")
    ] = None,
    prior: options.Prior = None,
    corrector: Annotated[
        str | None, Option(help="auto, none, embedded name, folder or hub id.", show_default="auto")
    ] = None,
    batch_size: Annotated[int | None, Option(help="Samples computed together.", show_default="8")] = None,
    settings: options.Settings = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
) -> None:
    """Compare methods: faces × methods × scales × degradations × seeds, every figure, one report.

    Lists are written with commas. bicubic and the corrector alone are always there. Writes results.parquet (a row an
    image), summary.json, report.html and images/. Started again, it goes on where it was. Exit code: 0 all done,
    3 some faces failed, 2 wrong usage.
    """
    flags = dict(locals())
    from faceprior.benchmark.config import BenchmarkConfig, load_benchmark
    from faceprior.benchmark.datasets import FaceSet, choose_faces, open_faces
    from faceprior.benchmark.report import REPORT_FILE, about, require_matplotlib, write_report
    from faceprior.benchmark.results import RESULTS
    from faceprior.benchmark.run import Benchmark
    from faceprior.benchmark.summary import summarise
    from faceprior.errors import OptionError

    flags = {name: value for name, value in flags.items() if name in BenchmarkConfig.model_fields}
    chosen = load_benchmark(config, options.with_settings(flags, settings))
    require_matplotlib()
    if any(output.resolve().is_relative_to(Path(folder).resolve()) for folder in chosen.data):
        raise OptionError(
            f"{output} lies inside the folder of faces, where its pictures count as faces; choose another"
        )
    found = open_faces(chosen.data, chosen.dataset, chosen.split)
    face_set = FaceSet(found.name, choose_faces(found.faces, chosen.faces, chosen.subset))
    flags_of_adm = Path(chosen.adm_config) if chosen.adm_config else None
    pipeline = options.load_pipeline(chosen.prior, chosen.corrector, device, dtype, adm_config=flags_of_adm)
    run = Benchmark(pipeline, chosen, face_set, output)
    for reason in dict.fromkeys(run.missing.values()):
        names = [name for name, own in run.missing.items() if own == reason]
        say(errors, f"{', '.join(names)}: {reason}", label="missing")
    with progress_bar() as progress:
        bar = progress.add_task("restoring faces", total=run.total)
        rows = run.run(partial(progress.advance, bar), partial(say, errors))
    with errors.status("summarising"):
        summaries = summarise(rows, run.labels, run.baseline, run.set_meters, chosen.by)
        write_report(output, about(run, shlex.join(["faceprior", *sys.argv[1:]])), summaries, rows)
    _print(summaries, run.baseline)
    say(console, f"the report is {output / REPORT_FILE}, the table {output / RESULTS}")
    failed = [row for row in rows if row["error"] is not None]
    end_with([f"{row['face']} ({row['method']}): {row['error']}" for row in failed], "failed")


def _print(summaries: Sequence[MethodSummary], baseline: str) -> None:
    """Show a table for each input and group: a row for each figure, a column for each method."""
    from faceprior.benchmark.report import by_case, columns_of, figure_text

    target = console if console.is_terminal else Console(width=_WIDTH)
    style = box.SIMPLE if console.is_terminal else box.MARKDOWN
    for case, own in by_case(summaries).items():
        target.print(f"\n{case}, {max(summary.faces for summary in own)} faces; baseline {baseline}", highlight=False)
        table = Table(box=style)
        table.add_column("", no_wrap=True)
        for summary in own:
            table.add_column(summary.method, justify="right")
        for metric in columns_of(own):
            table.add_row(metric.title, *(figure_text(summary.figures.get(metric.name), metric) for summary in own))
        target.print(table)
