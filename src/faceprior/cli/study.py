"""`faceprior study`: open questions, answered with a CSV file and a plot."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from faceprior.cli.console import console, errors

study_app = typer.Typer(help="Answer open questions with figures: a CSV file and a plot each.", no_args_is_help=True)

Data = Annotated[Path, typer.Option("--data", help="Folder that `faceprior data pack` wrote.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the CSV file and the plot.")]


LEVELS = ("0.05T", "0.25T", "0.45T", "0.65T", "0.85T", "mean")


@study_app.command("networks")
def networks(
    configs: Annotated[list[Path], typer.Argument(help="YAML files of `faceprior train prior`.", show_default=False)],
    data: Data,
    output: Output,
    minutes: Annotated[float, typer.Option(min=0.01, help="Computing time of each.")] = 5.0,
) -> None:
    """Train several networks for equal time and compare their x0-PSNR on held-out faces."""
    from faceprior.studies.networks import final_rows, study_networks
    from faceprior.training.config import PriorConfig, load_config

    chosen = {path.stem: load_config(PriorConfig, path, {}) for path in configs}
    command = shlex.join(["faceprior", *sys.argv[1:]])
    with errors.status("training") as status:
        rows = study_networks(
            chosen, data, output, minutes, command=command, on_run=lambda name: status.update(f"training {name}")
        )
    table = Table("run", "faces seen", *LEVELS, title="x0-PSNR in dB")
    for row in final_rows(rows):
        table.add_row(row["name"], f"{row['samples']:,}", *(f"{row[level]:.2f}" for level in LEVELS))
    console.print(table)
