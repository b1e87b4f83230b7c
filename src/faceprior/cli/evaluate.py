"""`faceprior evaluate`: how good a prior and its corrector are on held-out faces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from faceprior.cli import options
from faceprior.cli.console import console, progress_bar
from faceprior.cli.options import DegradationName, DeviceName, DtypeName


def evaluate(
    data: Annotated[Path, typer.Option("--data", help="Folder that `faceprior data pack` wrote.")],
    scale: Annotated[float, typer.Option(min=2, max=32, help="Resolution over the side of the inputs.")] = 8.0,
    degradation: Annotated[DegradationName, typer.Option(help="What comes before the reduction.")] = (
        DegradationName.bicubic
    ),
    faces: Annotated[int, typer.Option(min=1, help="Held-out faces, spread over the split.")] = 64,
    samples: options.Samples = 8,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the figures as JSON.")] = None,
    prior: options.Prior = None,
    adm_config: options.ADMConfigFile = None,
    corrector: options.Corrector = "auto",
    method: options.Method = None,
    preset: options.PresetOption = None,
    method_options: options.MethodOptions = None,
    solver: options.Solver = None,
    steps: options.Steps = None,
    start: options.Start = None,
    tau: options.Tau = None,
    stride: options.Stride = None,
    edge_exponent: options.EdgeExponent = None,
    late_weight: options.LateWeight = None,
    eta: options.Eta = None,
    seed: options.Seed = 0,
    device: options.Device = DeviceName.auto,
    dtype: options.Dtype = DtypeName.auto,
) -> None:
    """Degrade held-out faces, restore them and compare with bicubic enlargement: mean PSNR, SSIM, LR consistency."""
    from faceprior.pipeline.held_out import evaluate_held_out
    from faceprior.training.shards import PackedFaces

    chosen = options.make_preset(
        preset,
        solver,
        method=method,
        method_options=method_options,
        steps=steps,
        start=start,
        tau=tau,
        stride=stride,
        edge_exponent=edge_exponent,
        late_weight=late_weight,
        eta=eta,
    )
    held_out = PackedFaces(data, "val")
    count = min(faces, len(held_out))
    sharp = held_out.batch([index * len(held_out) // count for index in range(count)])
    pipeline = options.load_pipeline(prior, adm_config, corrector, device, dtype, chosen)
    pipeline.check(chosen)
    columns = (TextColumn("evaluating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with progress_bar(*columns) as progress:
        bar = progress.add_task("evaluating", total=count)
        figures = evaluate_held_out(
            pipeline,
            sharp,
            scale,
            chosen,
            degradation=degradation.value,
            samples=samples,
            seed=seed,
            on_face=lambda: progress.advance(bar),
        )
    console.print(figures_table(figures, f"{count} held-out faces, ×{scale:g} {degradation.value}", samples))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


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
