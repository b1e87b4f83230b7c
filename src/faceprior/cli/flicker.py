"""`faceprior benchmark flicker`: how much faces of clips flicker, ours against frame by frame."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from faceprior.cli import options
from faceprior.cli.console import console, progress_bar
from faceprior.cli.options import DeviceName, DtypeName

if TYPE_CHECKING:
    from faceprior.benchmark.flicker import ClipFigures


def flicker(
    clips: Annotated[
        list[Path] | None,
        typer.Argument(help="Clips; none makes two of a photograph, whose truth is known.", show_default=False),
    ] = None,
    frames: Annotated[int, typer.Option(min=2, help="Frames of the clips that are made.")] = 25,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to a file.")] = None,
    method: options.Method = "default",
    option: options.MethodOptions = None,
    seed: options.Seed = 0,
    prior: options.Prior = None,
    corrector: options.Corrector = "auto",
    device: options.Device = DeviceName.auto,
    dtype: options.Dtype = DtypeName.auto,
) -> None:
    """Measure how much restored faces flicker: followed through the clip, and every frame restored by itself.

    Flicker is the mean absolute difference of a face in consecutive frames, aligned, in grey levels of 255. The
    input's own is what truly moves and its noise.
    """
    from faceprior.benchmark.flicker import MOTIONS, made_clip, measure_clip
    from faceprior.clips import frame_count
    from faceprior.faces import load_detector
    from faceprior.photographs import RestoreOptions

    chosen = options.make_preset(method, option)
    how = RestoreOptions(preset=chosen, preset_name=method, seed=seed)
    pipeline = options.load_pipeline(prior, None, corrector, device, dtype, chosen)
    detector, figures = load_detector(), []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with progress_bar(*columns) as bar:

        def measure(path: Path, **known: Any) -> None:
            task = bar.add_task(path.stem, total=frame_count(path) or None)
            figures.append(
                measure_clip(
                    pipeline, path, detector, how, **known, on_frame=lambda done: bar.update(task, completed=done)
                )
            )

        for path in clips or ():
            measure(path)
        for motion in () if clips else MOTIONS:
            with made_clip(motion, frames, seed) as (path, truth):
                measure(path, truth=truth)
    console.print(_table(figures))
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(own) for own in figures], indent=2) + "\n", encoding="utf-8")


def _table(figures: list[ClipFigures]) -> Table:
    table = Table("clip", "frames", "restored", "flicker", "above the input's", "PSNR, dB")
    for own in figures:
        for way, value in own.flicker.items():
            above = "" if way == "input" else f"{value - own.flicker['input']:+.2f}"
            fidelity = f"{own.psnr[way]:.2f}" if way in own.psnr else ""
            table.add_row(own.name, str(own.frames), way, f"{value:.2f}", above, fidelity)
        if own.true_flicker is not None:
            table.add_row(own.name, str(own.frames), "truth", f"{own.true_flicker:.2f}", "", "")
    return table
