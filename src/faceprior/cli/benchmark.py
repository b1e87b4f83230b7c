"""`faceprior benchmark`: methods compared on sets of faces."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
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
from faceprior.cli.speed import growth, speed

if TYPE_CHECKING:
    from faceprior.benchmark.report import About
    from faceprior.benchmark.results import Row
    from faceprior.benchmark.summary import MethodSummary
    from faceprior.pipeline import FacePriorPipeline

_WIDTH = 160  # of a table that goes into a file or a pipe, in characters


Data = Annotated[
    list[str] | None,
    typer.Option(help="Folder of faces, packed or not; several may be given.", show_default="config"),
]
Dataset = Annotated[
    str | None,
    typer.Option(help="Layout of the folder: celeba, ffhq, lfw, webphoto or wider.", show_default="config"),
]
Faces = Annotated[
    int | None, typer.Option(help="Number of faces, spread over the set; 0 takes all.", show_default="config", min=0)
]
Subset = Annotated[str | None, typer.Option(help="extreme-pose, or LABEL=VALUE.", show_default="config")]
Methods = Annotated[
    list[str] | None,
    typer.Option(help="NAME or NAME,option=value,…,label=…; several may be given.", show_default="config"),
]
Scales = Annotated[
    list[float] | None,
    typer.Option(help="Resolution over the side of the inputs; several may be given.", show_default="config"),
]
Degradations = Annotated[
    list[str] | None,
    typer.Option(
        help="bicubic, noise-SIGMA, gfpgan, …, low-light, occlusion-…, or none; several may be given.",
        show_default="config",
    ),
]
Seeds = Annotated[
    list[int] | None, typer.Option(help="Seed of damage and noise; several may be given.", show_default="config")
]
Samples = Annotated[
    int | None, typer.Option(help="Restorations of each face with each seed.", show_default="config", min=1)
]
Metrics = Annotated[
    list[str] | None,
    typer.Option(help="Name of a figure; several may be given, none takes all.", show_default="config"),
]
Baseline = Annotated[
    str | None, typer.Option(help="Method that the others are compared with.", show_default="config")
]
Reference = Annotated[
    str | None, typer.Option(help="Folder of faces for FID and KID instead of the true ones.", show_default="config")
]
ArcFace = Annotated[
    str | None, typer.Option(help="ArcFace checkpoint that measures identity instead of dlib.", show_default="config")
]
Threshold = Annotated[float | None, typer.Option(help="Cosine similarity of the same person.", show_default="config")]
Prior = Annotated[
    str | None,
    typer.Option(help="Embedded name, diffusers folder, ADM checkpoint file or hub id.", show_default="config"),
]
ADMConfig = Annotated[
    str | None, typer.Option(help="JSON or YAML with the flags of an ADM checkpoint file.", show_default="config")
]
Corrector = Annotated[
    str | None, typer.Option(help="auto, none, embedded name, folder or hub id.", show_default="config")
]
BatchSize = Annotated[int | None, typer.Option(help="Samples computed together.", show_default="config", min=1)]
Title = Annotated[str | None, typer.Option(help="Of the report.", show_default="config")]
WholeBatches = Annotated[
    bool | None,
    typer.Option(help="Networks see whole batches on a CPU too: faster, other last bits.", show_default="config"),
]


benchmark_app = typer.Typer(invoke_without_command=True)
benchmark_app.command("speed")(speed)
benchmark_app.command("growth")(growth)


@benchmark_app.callback()
def benchmark(
    context: typer.Context,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the results; the same one goes on.", show_default="required"),
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="YAML file of options; flags win over it.")] = None,
    data: Data = None,
    dataset: Dataset = None,
    faces: Faces = None,
    subset: Subset = None,
    method: Methods = None,
    scale: Scales = None,
    degradation: Degradations = None,
    seed: Seeds = None,
    samples: Samples = None,
    metric: Metrics = None,
    baseline: Baseline = None,
    reference: Reference = None,
    arcface: ArcFace = None,
    identity_threshold: Threshold = None,
    prior: Prior = None,
    adm_config: ADMConfig = None,
    corrector: Corrector = None,
    whole_batches: WholeBatches = None,
    batch_size: BatchSize = None,
    title: Title = None,
    device: options.Device = DeviceName.auto,
    dtype: options.Dtype = DtypeName.auto,
) -> None:
    """Compare methods: faces × methods × scales × degradations × seeds, every figure, one report.

    Writes results.parquet (a row an image), summary.json, report.html and images/. Started again, it goes on where
    it was. Exit code: 0 all done, 3 some faces failed, 2 wrong usage.

    The commands below measure other things; they have options of their own.
    """
    if context.invoked_subcommand is not None:
        _refuse_options(context)
        return
    if output is None:
        raise typer.BadParameter("is missing: name a folder for the results", context, param_hint="'--output' / '-o'")
    from faceprior.benchmark.config import BenchmarkConfig
    from faceprior.benchmark.datasets import FaceSet, choose_faces, open_faces
    from faceprior.benchmark.metrics import MeterOptions, check_names
    from faceprior.benchmark.report import REPORT_FILE, SUMMARY_FILE, About, write_report, write_summary
    from faceprior.benchmark.results import RESULTS
    from faceprior.benchmark.run import Benchmark
    from faceprior.benchmark.sets import SetInputs
    from faceprior.benchmark.summary import summarise
    from faceprior.errors import OptionError
    from faceprior.studies.tables import require_matplotlib
    from faceprior.training.config import load_config

    flags = {
        "title": title,
        "data": data,
        "dataset": dataset,
        "faces": faces,
        "subset": subset,
        "methods": method,
        "scales": scale,
        "degradations": degradation,
        "seeds": seed,
        "samples": samples,
        "metrics": metric,
        "baseline": baseline,
        "reference": reference,
        "arcface": arcface,
        "identity_threshold": identity_threshold,
        "prior": prior,
        "adm_config": adm_config,
        "corrector": corrector,
        "whole_batches": whole_batches,
        "batch_size": batch_size,
    }
    chosen = load_config(BenchmarkConfig, config, {name: value for name, value in flags.items() if value != []})
    check_names(chosen.metrics)
    require_matplotlib()
    if any(output.resolve().is_relative_to(Path(folder).resolve()) for folder in chosen.data):
        raise OptionError(
            f"{output} lies inside the folder of faces, where its pictures count as faces; choose another"
        )
    found = open_faces(chosen.data, chosen.dataset)
    face_set = FaceSet(found.name, choose_faces(found.faces, chosen.faces, chosen.subset))
    adm_flags = Path(chosen.adm_config) if chosen.adm_config else None
    pipeline = options.load_pipeline(chosen.prior or None, adm_flags, chosen.corrector, device, dtype)
    card = pipeline.prior.card
    meter_options = MeterOptions(
        card.template, pipeline.resolution, pipeline.prior.device, chosen.arcface, chosen.identity_threshold
    )
    run = Benchmark(pipeline, chosen, face_set, output, meter_options)
    has_truth = any(condition.has_truth for condition in chosen.conditions())
    set_inputs = SetInputs(output, run.meters, chosen.metrics, chosen.reference, has_truth=has_truth)
    missing = {**run.meters.missing, **set_inputs.missing}
    for reason, names in _by_reason(missing).items():
        say(errors, f"{', '.join(names)}: {reason}", label="missing")
    columns = (TextColumn("restoring"), BarColumn(), MofNCompleteColumn(), TextColumn("faces"), TimeRemainingColumn())
    with progress_bar(*columns) as progress:
        bar = progress.add_task("restoring", total=run.total)
        rows = run.run(lambda done: progress.advance(bar, done))
    labels = list(run.methods)
    baseline = chosen.baseline or labels[0]
    with errors.status("summarising"):
        summaries = summarise(rows, labels, baseline, chosen.confidence_draws, set_inputs)
        about = About(
            title=chosen.title,
            command=shlex.join(["faceprior", *sys.argv[1:]]),
            config=asdict(chosen),
            faces=len(face_set.faces),
            dataset=face_set.name,
            baseline=baseline,
            missing=missing,
            prior=f"{card.name} (sha256 {card.sha256})",
            corrector=_corrector_text(pipeline),
            identity=f"{meter_options.identity_network}; same person from cosine {meter_options.same_person:g}",
            reference=_reference_text(chosen.reference, set_inputs.reference_faces, has_truth=has_truth),
        )
        write_summary(output / SUMMARY_FILE, about, summaries)
        write_report(output / REPORT_FILE, about, summaries, rows)
    target = console if console.is_terminal else Console(width=_WIDTH)
    for table in _tables(summaries, about):
        target.print(table)
    say(console, f"the report is {output / REPORT_FILE}, the table {output / RESULTS}")
    _report_failures([row for row in rows if row["error"] is not None])


def _report_failures(failed: Sequence[Row]) -> None:
    for row in failed:
        say(errors, f"{row['face']} ({row['method']}): {row['error']}", label="failed")
    if failed:
        raise typer.Exit(EXIT_SOME_FAILED)


def _refuse_options(context: typer.Context) -> None:
    """Options before a command within would be lost."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE":
            within = context.invoked_subcommand
            raise typer.BadParameter(
                f"stands before {within}; options of `faceprior benchmark {within}` come after it",
                context,
                param_hint=f"'{parameter.opts[0]}'",
            )


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


def _tables(summaries: Sequence[MethodSummary], about: About) -> Iterator[Table]:
    from faceprior.benchmark.report import by_condition, columns_of, figure_text

    for (degradation, scale), own in by_condition(summaries).items():
        metrics = columns_of(own)
        table = Table(title=f"{about.title}: ×{scale:g} {degradation}", box=box.SIMPLE)
        table.add_column("", no_wrap=True)
        for metric in metrics:
            table.add_column(metric.title, justify="right")
        for summary in own:
            table.add_row(summary.method, *(figure_text(summary, metric, with_interval=False) for metric in metrics))
        yield table
