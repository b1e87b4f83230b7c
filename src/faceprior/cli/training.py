"""Commands that pack data and train."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer import Argument, Option

from faceprior.cli import options
from faceprior.cli.console import console, end_with, errors, progress_bar, say

data_app = typer.Typer(help="Prepare training data.", no_args_is_help=True)
train_app = typer.Typer(help="Train a prior or a corrector.", no_args_is_help=True)


@data_app.command("align")
def data_align(
    photographs: Annotated[
        list[str],
        Argument(help="Photographs, folders, patterns; paths or URLs.", metavar="INPUT...", show_default=False),
    ],
    output: Annotated[Path, Option("--output", "-o", help="Folder for the faces and their index.csv.")],
    size: Annotated[int, Option(min=8, help="Side of the aligned faces, in pixels.")] = 128,
    min_detail: Annotated[
        float | None, Option(min=0, help="Least detail of a face, in pixels across.", show_default="3/4 of --size")
    ] = None,
) -> None:
    """Find the faces of photographs and align them, for `faceprior data pack`."""
    from faceprior.faces import load_detector
    from faceprior.folders.inputs import find_inputs, output_names
    from faceprior.images import IMAGE_SUFFIXES
    from faceprior.storage import place
    from faceprior.training.cut import cut_faces

    inputs = find_inputs([place(text) for text in photographs], output, lambda text: say(errors, text))
    problems = [given.problem for given in inputs if given.problem]
    readable = [one for one in inputs if one.problem is None and one.path.suffix.lower() in IMAGE_SUFFIXES]
    names = output_names(readable, output, [""])
    with _counting("aligning photographs", len(readable)) as count:
        given = ((one.path, name, one.path.parent.name) for one, name in zip(readable, names, strict=True))
        report = cut_faces(given, output, load_detector(), size=size, min_detail=min_detail, on_photograph=count)
    for line in report.left_out:
        say(errors, f"left out {line}")
    say(console, f"{output}: {report.faces} faces; say in index.csv what they may be used for (terms, licence)")
    end_with([*problems, *report.problems], "skipped")


@data_app.command("pack")
def data_pack(
    folders: Annotated[
        list[Path],
        Argument(help="Folders of aligned faces, or of tars of them.", show_default=False),
    ],
    output: Annotated[Path, Option("--output", "-o", help="Folder for the packed faces and their manifest.")],
    size: Annotated[int, Option(min=8, help="Side of the packed faces, in pixels.")] = 128,
    held_out: Annotated[
        float, Option(min=0, max=1, help="Share of the pictures that is held out, at least one.")
    ] = 0.02,
) -> None:
    """Pack aligned faces into one array, a part of them held out for validation."""
    from faceprior.training.shards import pack

    with _counting("packing faces") as count:
        report = pack(folders, output, size=size, held_out=held_out, on_face=count)
    say(console, f"{output}: {', '.join(f'{count} {split}' for split, count in sorted(report.faces.items()))}")
    end_with(report.problems, "skipped")


@contextmanager
def _counting(what: str, total: int | None = None) -> Iterator[Callable[[], None]]:
    with progress_bar() as progress:
        bar = progress.add_task(what, total=total)
        yield lambda: progress.advance(bar)


def _training(what: Literal["prior", "corrector"]) -> Callable[..., None]:
    def command(
        data: Annotated[Path, Option("--data", help="Folder that `faceprior data pack` wrote.")],
        output: Annotated[Path, Option("--output", "-o", help="Folder of the run.")],
        config: Annotated[Path | None, Option("--config", help="YAML file of options; flags win over it.")] = None,
        resume: Annotated[bool, Option("--resume", help="Go on from the newest checkpoint.")] = False,
        start_from: Annotated[
            str | None, Option("--start-from", help="Weights to start from: embedded name or folder.")
        ] = None,
        steps: Annotated[int | None, Option(min=1, help="Optimiser steps in all.", show_default="config")] = None,
        minutes: Annotated[
            float | None,
            Option(min=0, help="Stop earlier, after so much computing; 0 is none.", show_default="config"),
        ] = None,
        batch_size: Annotated[int | None, Option(min=1, help="Faces a step.", show_default="config")] = None,
        workers: Annotated[
            int | None,
            Option(
                min=0, help="Processes that prepare the faces.", show_default="all other cores on a GPU, else none"
            ),
        ] = None,
        sources: Annotated[
            list[str] | None,
            Option("--sources", help="Train on faces of these terms only, for example open.", show_default="all"),
        ] = None,
        settings: options.Settings = None,
    ) -> None:
        from faceprior.settings import load_settings
        from faceprior.training.config import CorrectorConfig, PriorConfig
        from faceprior.training.corrector import CorrectorTask
        from faceprior.training.prior import PriorTask
        from faceprior.training.shards import PackedFaces
        from faceprior.training.trainer import train

        kinds: dict[str, tuple[Any, Any]] = {
            "prior": (PriorConfig, PriorTask),
            "corrector": (CorrectorConfig, CorrectorTask),
        }
        config_kind, task_kind = kinds[what]
        flags = {"steps": steps, "minutes": minutes, "batch_size": batch_size, "workers": workers, "terms": sources}
        chosen = load_settings(config_kind, config, options.with_settings(flags, settings))
        faces = PackedFaces(data, "train", chosen.terms, chosen.at_least)
        task = task_kind(chosen, faces, PackedFaces(data, "val"), start_from)
        with progress_bar() as progress:
            bar = progress.add_task("training", total=chosen.steps)

            def on_step(step: int, loss: float, figures: dict[str, float] | None) -> None:
                progress.update(bar, completed=step, description=f"loss {loss:.4f}")
                if figures:
                    text = ", ".join(f"{name} {value:.2f}" for name, value in figures.items())
                    say(console, f"step {step}: {text}")

            command_line = shlex.join(["faceprior", *sys.argv[1:]])
            train(task, chosen, faces, output, resume=resume, command=command_line, on_step=on_step)
        say(console, f"weights are in {output / 'weights'}")

    command.__doc__ = f"Train a {what} on packed faces; the result is OUTPUT/weights, which --{what} takes."
    return command


train_app.command("prior")(_training("prior"))
train_app.command("corrector")(_training("corrector"))
