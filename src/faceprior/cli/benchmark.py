"""`faceprior benchmark`: methods compared on sets of faces."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from faceprior.cli import options
from faceprior.cli.console import EXIT_SOME_FAILED, console, errors, progress_bar, say
from faceprior.cli.options import DeviceName, DtypeName

if TYPE_CHECKING:
    from faceprior.benchmark.results import Row
    from faceprior.benchmark.summary import MethodSummary
    from faceprior.pipeline import FacePriorPipeline

_WIDTH = 240  # of a table that goes into a file or a pipe, in characters


Data = Annotated[
    list[str] | None,
    typer.Option(help="Folder of faces, packed or not; several are one set.", show_default="config's"),
]
Faces = Annotated[
    int | None, typer.Option(help="Number of faces, spread over the set; 0 takes all.", show_default="64")
]
Methods = Annotated[
    str | None,
    typer.Option(help="NAME or NAME,option=value,…,label=…, and further ones after a comma.", show_default="default"),
]
Scales = Annotated[str | None, typer.Option(help="R/n of the inputs.", show_default="8")]
Degradations = Annotated[
    str | None,
    typer.Option(help="bicubic, noise-SIGMA, gfpgan, …, low-light, occlusion-…, or none.", show_default="bicubic"),
]
Seeds = Annotated[str | None, typer.Option(help="Seeds of damage and noise.", show_default="0")]
Samples = Annotated[
    int | None, typer.Option(help="Restorations of each face; of several, their mean too.", show_default="1")
]
Metrics = Annotated[str | None, typer.Option(help="Names of figures.", show_default="all")]
By = Annotated[
    str | None, typer.Option(help="Also tables by source, age, gender, group or another label.", show_default="none")
]
CorrectorName = Annotated[
    str | None, typer.Option(help="auto, none, embedded name, folder or hub id.", show_default="auto")
]
BatchSize = Annotated[int | None, typer.Option(help="Samples computed together.", show_default="8")]


def benchmark(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the results; the same one goes on.")] = (
        Path("benchmark")
    ),
    config: Annotated[Path | None, typer.Option("--config", help="YAML file of options; flags win over it.")] = None,
    data: Data = None,
    faces: Faces = None,
    methods: Methods = None,
    scales: Scales = None,
    degradations: Degradations = None,
    seeds: Seeds = None,
    samples: Samples = None,
    metrics: Metrics = None,
    by: By = None,
    prior: options.Prior = None,
    corrector: CorrectorName = None,
    batch_size: BatchSize = None,
    settings: options.Settings = None,
    device: options.Device = DeviceName.auto,
    dtype: options.Dtype = DtypeName.auto,
) -> None:
    """Compare methods: faces × methods × scales × degradations × seeds, every figure, one report.

    Lists are written with commas. bicubic and the corrector alone are always there. Writes results.parquet (a row an
    image), summary.json, report.html and images/. Started again, it goes on where it was. Exit code: 0 all done,
    3 some faces failed, 2 wrong usage.
    """
    from faceprior.benchmark.config import load_benchmark
    from faceprior.benchmark.datasets import FaceSet, choose_faces, open_faces
    from faceprior.benchmark.metrics import MeterOptions, check_names
    from faceprior.benchmark.plots import require_matplotlib
    from faceprior.benchmark.report import REPORT_FILE, SUMMARY_FILE, About, write_report, write_summary
    from faceprior.benchmark.results import RESULTS
    from faceprior.benchmark.run import Benchmark
    from faceprior.benchmark.sets import SetMeters
    from faceprior.benchmark.summary import summarise
    from faceprior.errors import OptionError

    flags = {
        "data": data,
        "faces": faces,
        "methods": methods,
        "scales": scales,
        "degradations": degradations,
        "seeds": seeds,
        "samples": samples,
        "metrics": metrics,
        "by": by,
        "prior": prior,
        "corrector": corrector,
        "batch_size": batch_size,
    }
    chosen = load_benchmark(config, options.with_settings(flags, settings))
    check_names(chosen.metrics)
    require_matplotlib()
    if any(output.resolve().is_relative_to(Path(folder).resolve()) for folder in chosen.data):
        raise OptionError(
            f"{output} lies inside the folder of faces, where its pictures count as faces; choose another"
        )
    found = open_faces(chosen.data, chosen.dataset, chosen.split)
    face_set = FaceSet(found.name, choose_faces(found.faces, chosen.faces, chosen.subset))
    adm_flags = Path(chosen.adm_config) if chosen.adm_config else None
    pipeline = options.load_pipeline(chosen.prior or None, adm_flags, chosen.corrector, device, dtype)
    card = pipeline.prior.card
    meter_options = MeterOptions(
        card.template, pipeline.resolution, pipeline.prior.device, chosen.arcface, chosen.identity_threshold
    )
    run = Benchmark(pipeline, chosen, face_set, output, meter_options)
    baseline = run.baseline
    has_truth = any(condition.has_truth for condition in chosen.conditions())
    set_meters = SetMeters(
        output, run.meters, chosen.metrics, chosen.reference, has_truth=has_truth, draws=chosen.confidence_draws
    )
    missing = {**run.meters.missing, **set_meters.missing}
    for reason, names in _by_reason(missing).items():
        say(errors, f"{', '.join(names)}: {reason}", label="missing")
    columns = (TextColumn("restoring"), BarColumn(), MofNCompleteColumn(), TextColumn("faces"), TimeRemainingColumn())
    with progress_bar(*columns) as progress:
        bar = progress.add_task("restoring", total=run.total)
        rows = run.run(lambda done: progress.advance(bar, done), lambda text: say(errors, text))
    with errors.status("summarising"):
        summaries = summarise(rows, run.labels, baseline, chosen.confidence_draws, set_meters, chosen.by)
        about = About(
            title=chosen.title,
            command=shlex.join(["faceprior", *sys.argv[1:]]),
            config=chosen.model_dump(),
            faces=len(face_set.faces),
            dataset=face_set.name,
            baseline=baseline,
            missing=missing,
            prior=f"{card.name} (sha256 {card.sha256})",
            corrector=_corrector_text(pipeline),
            identity=f"{meter_options.identity_network}; same person from cosine {meter_options.same_person:g}",
            reference=_reference_text(chosen.reference, set_meters.reference_faces, has_truth=has_truth),
        )
        write_summary(output / SUMMARY_FILE, about, summaries)
        write_report(output / REPORT_FILE, about, summaries, rows)
    _print(summaries, baseline)
    say(console, f"the report is {output / REPORT_FILE}, the table {output / RESULTS}")
    _report_failures([row for row in rows if row["error"] is not None])


def _report_failures(failed: Sequence[Row]) -> None:
    for row in failed:
        say(errors, f"{row['face']} ({row['method']}): {row['error']}", label="failed")
    if failed:
        raise typer.Exit(EXIT_SOME_FAILED)


def _by_reason(missing: dict[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, reason in missing.items():
        found.setdefault(reason, []).append(name)
    return found


def _corrector_text(pipeline: FacePriorPipeline) -> str:
    card = pipeline.corrector_card
    return f"{card.name} (sha256 {card.sha256})" if card else "none"


def _reference_text(folder: str, faces: int | None, *, has_truth: bool) -> str:
    if folder:
        return folder if faces is None else f"{faces} faces of {folder}"
    return "the true faces of the same run" if has_truth else "nothing: the true faces are not known"


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
