"""`faceprior evaluate`: how good a prior and its corrector are on held-out faces."""

from __future__ import annotations

import csv
import json
import shlex
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from faceprior import __version__
from faceprior.cli import options
from faceprior.cli.console import console, errors, say
from faceprior.cli.options import DegradationName, DeviceName, DtypeName
from faceprior.cli.progress import faces_progress
from faceprior.errors import FacePriorError

if TYPE_CHECKING:
    from faceprior.evaluation.figures import Estimate, Evaluation, Mean, Summary
    from faceprior.evaluation.identity import FaceEmbedder
    from faceprior.pipeline import FacePriorPipeline

FACES_FILE, SUMMARY_FILE = "faces.csv", "summary.json"

_WIDTH = 160  # of a table that goes into a file or a pipe, in characters


class SplitName(str, Enum):
    """Splits of a packed set."""

    val, train = "val", "train"


def evaluate(
    data: options.Data,
    scale: Annotated[list[float] | None, options.scales("8")] = None,
    degradation: Annotated[
        list[DegradationName] | None,
        typer.Option(help="What comes before the reduction; several may be given.", show_default="bicubic"),
    ] = None,
    split: Annotated[SplitName, typer.Option(help="train shows whether the weights know their training faces.")] = (
        SplitName.val
    ),
    faces: options.Faces = 64,
    samples: options.Samples = 8,
    without_corrector: Annotated[
        bool, typer.Option("--without-corrector", help="Also restore without the corrector, to compare.")
    ] = False,
    by: Annotated[
        list[str] | None,
        typer.Option(
            help="Also a table by source, age, gender, group or another label of the faces; several may be given.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help=f"Folder for {FACES_FILE} (a row a face) and {SUMMARY_FILE}."),
    ] = None,
    prior: options.Prior = None,
    adm_config: options.ADMConfigFile = None,
    corrector: options.Corrector = "auto",
    method: options.Method = "default",
    option: options.MethodOptions = None,
    seed: options.Seed = 0,
    device: options.Device = DeviceName.auto,
    dtype: options.Dtype = DtypeName.auto,
    batch_size: options.BatchSize = 8,
) -> None:
    """Degrade held-out faces, restore them and compare bicubic, one sample and the mean of the samples.

    Fidelity (PSNR, SSIM), agreement with the input, identity and Fréchet distance, with 95 % intervals.
    """
    from faceprior.evaluation.groups import face_labels, group_faces
    from faceprior.pipeline.held_out import Damage, evaluate_held_out
    from faceprior.training.shards import PackedFaces

    chosen = options.make_preset(method, option)
    held_out = PackedFaces(data, split.value)
    positions = held_out.spread(faces)
    packed = [held_out.faces[position] for position in positions]
    labels = [face_labels(face.source, face.terms, face.labels) for face in packed]
    groups = {name: group_faces(labels, name) for name in dict.fromkeys(by or ())}
    damages = [
        Damage(kind.value, size)
        for kind in dict.fromkeys(degradation or [DegradationName.bicubic])
        for size in dict.fromkeys(scale or [8.0])
    ]
    pipeline = options.load_pipeline(prior, adm_config, corrector, device, dtype, chosen)
    pipeline.check(chosen)
    held_out.check_size(pipeline.resolution)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
    embedder = load_embedder(pipeline)

    with faces_progress(len(positions) * len(damages) * (1 + without_corrector)) as advance:
        evaluation = evaluate_held_out(
            pipeline,
            held_out.batch(positions),
            damages,
            chosen,
            samples=samples,
            seed=seed,
            batch_size=batch_size,
            without_corrector=without_corrector,
            embedder=embedder,
            on_faces=advance,
        )
    summaries = evaluation.summarise()
    grouped = {
        name: {value: evaluation.summarise_group(members) for value, members in members_of.items()}
        for name, members_of in groups.items()
    }
    target = table_console()
    target.print(summary_table({"": summaries}, f"{len(positions)} faces of {data}, {split.value}", samples))
    for name, members in grouped.items():
        target.print(summary_table(members, f"by {name}", samples))
    if output is not None:
        about = {
            "command": shlex.join(["faceprior", *sys.argv[1:]]),
            "faceprior": __version__,
            "data": str(data),
            "split": split.value,
            "faces": len(positions),
            "samples": samples,
            "seed": seed,
            "method": chosen.method,
            "preset": method,
            "options": chosen.as_dict(),
            **_weights(pipeline),
        }
        _write_faces(output / FACES_FILE, evaluation, [face.name for face in packed], labels)
        results = {
            "summary": [_plain(summary) for summary in summaries],
            "groups": {
                name: {value: [_plain(summary) for summary in rows] for value, rows in members.items()}
                for name, members in grouped.items()
            },
        }
        text = json.dumps({**about, **results}, indent=2, ensure_ascii=False)
        (output / SUMMARY_FILE).write_text(text + "\n", encoding="utf-8")
        say(console, f"figures are in {output / FACES_FILE} and {output / SUMMARY_FILE}")


def table_console() -> Console:
    """Return where wide tables go: the terminal, or a file or pipe as wide as they need."""
    return console if console.is_terminal else Console(width=_WIDTH)


def load_embedder(*pipelines: FacePriorPipeline) -> FaceEmbedder | None:
    """Return what measures identity; None, with the reason said, where it cannot be measured with every prior."""
    from faceprior.evaluation.identity import FaceEmbedder

    try:
        embedder = FaceEmbedder()
    except FacePriorError as error:
        say(errors, f"{error}; identity and Fréchet distance are left out")
        return None
    for card in (pipeline.prior.card for pipeline in pipelines):
        if not card.template:
            say(errors, f"the card of prior {card.name} has no template: identity and Fréchet distance are left out")
            return None
    return embedder


def _weights(pipeline: FacePriorPipeline) -> dict[str, Any]:
    prior, corrector = pipeline.prior.card, pipeline.corrector_card
    return {
        "prior": {"name": prior.name, "sha256": prior.sha256},
        "corrector": {"name": corrector.name, "sha256": corrector.sha256} if corrector else None,
        "device": str(pipeline.prior.device),
        "dtype": str(pipeline.unet.dtype).removeprefix("torch."),
    }


def _write_faces(path: Path, evaluation: Evaluation, names: list[str], labels: list[dict[str, str]]) -> None:
    from faceprior.evaluation.figures import FIGURES

    label_names = list(dict.fromkeys(name for own in labels for name in own))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        measured = ["degradation", "scale", "estimate", "corrector", *FIGURES]
        headings = [f"label_{name}" if name in {"face", *measured} else name for name in label_names]
        writer.writerow(["face", *headings, *measured])
        for row in evaluation.rows:
            own, case = labels[row.face], row.case
            described = [names[row.face], *(own.get(name, "") for name in label_names)]
            done = [case.degradation, f"{case.scale:g}", case.estimate, case.corrector_text]
            figures = [getattr(row, name) for name in FIGURES]
            writer.writerow(described + done + ["" if value is None else f"{value:.6g}" for value in figures])


def _plain(summary: Summary) -> dict[str, Any]:
    case = summary.case
    return {
        "degradation": case.degradation,
        "scale": case.scale,
        "estimate": case.estimate,
        "corrector": case.corrector_text,
        "faces": summary.faces,
        **{name: {"mean": mean.mean, "ci95": mean.ci95} for name, mean in summary.means.items()},
        "frechet": summary.frechet,
    }


def summary_table(groups: dict[str, list[Summary]], title: str, samples: int) -> Table:
    """Lay out means with half the width of their 95 % intervals.

    Args:
        groups: the summaries of each group; one group is called "" where faces are not grouped.
        title: of the table.
        samples: samples N of each face.
    """
    table = Table(title=title, box=box.SIMPLE, caption="± half a 95 % interval; Fréchet: dlib embeddings, same faces")
    numbers = ("PSNR, dB", "SSIM", "LR consistency, dB", "identity", "same person, %", "Fréchet", "s/face")
    for heading in ("", "faces", "input", "estimate", "corrector"):
        table.add_column(heading, no_wrap=True)
    for heading in numbers:
        table.add_column(heading, justify="right")
    for group, summaries in groups.items():
        group_text, earlier = group, ""
        for summary in summaries:
            case, means = summary.case, summary.means
            given = f"×{case.scale:g} {case.degradation}"
            table.add_row(
                group_text,
                f"{summary.faces}" if given != earlier else "",
                given if given != earlier else "",
                estimate_text(case.estimate, samples),
                case.corrector_text,
                _text(means.get("psnr"), 2),
                _text(means.get("ssim"), 3),
                _text(means.get("lr_consistency"), 1),
                _text(means.get("identity"), 3),
                _text(means.get("same_person"), 0, 100),
                "–" if summary.frechet is None else f"{summary.frechet:.3f}",
                f"{means['seconds'].mean:.2f}" if "seconds" in means else "",
            )
            group_text, earlier = "", given
        table.add_section()
    return table


def estimate_text(estimate: Estimate, samples: int) -> str:
    """Name an estimate in a table, of so many samples."""
    return {"bicubic": "bicubic", "sample": "one sample", "mean": f"mean of {samples}"}[estimate]


def _text(mean: Mean | None, digits: int, factor: float = 1) -> str:
    if mean is None:
        return "–"
    interval = "" if mean.ci95 is None else f" ±{mean.ci95 * factor:.{digits}f}"
    return f"{mean.mean * factor:.{digits}f}{interval}"


def figures_table(figures: dict[str, dict[str, float]], title: str, samples: int) -> Table:
    """Lay out what `Restored.fidelity` measures."""
    table = Table("", "PSNR (dB)", "SSIM", "LR consistency (dB)", title=title)
    for name in ("bicubic", "restored", "mean"):
        table.add_row(
            f"mean of {samples} samples" if name == "mean" else name,
            f"{figures['psnr'][name]:.2f}",
            f"{figures['ssim'][name]:.3f}",
            f"{figures['consistency'][name]:.1f}",
        )
    return table
