"""Which network, prediction and weighting learns faces best in equal computing time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from faceprior.studies.tables import Row, require_matplotlib, write_csv, write_plot
from faceprior.training.config import PriorConfig
from faceprior.training.prior import EVALUATION_SHARES, PriorTask
from faceprior.training.shards import PackedFaces
from faceprior.training.trainer import train

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def study_networks(
    configs: Mapping[str, PriorConfig],
    data: Path,
    output: Path,
    minutes: float,
    *,
    command: str = "",
    on_run: Callable[[str], object] = lambda _: None,
) -> list[Row]:
    """Train every network for the same minutes of computing and compare x0-PSNR on held-out faces.

    A run that was killed goes on where it was. Writes `OUTPUT/<name>/` (a training run each), `networks.csv` and
    `networks.png`.

    Args:
        configs: the trainings, by name.
        data: folder that `faceprior data pack` wrote.
        output: folder.
        minutes: of computing for each, evaluations and the fit of a Gaussian not counted.
        command: command line, for the cards.
        on_run: called with a name before its run.

    Returns:
        The table: a row for each evaluation of each run.

    Raises:
        OptionError: matplotlib is not installed.
    """
    require_matplotlib()
    rows: list[Row] = []
    for name, given in configs.items():
        on_run(name)
        config = replace(given, minutes=minutes)
        run = output / name
        faces, held_out = PackedFaces(data, "train", config.terms or None), PackedFaces(data, "val")
        begun = any((run / "checkpoints").glob("step-*"))
        train(PriorTask(config, faces, held_out), config, faces, run, resume=begun, command=command)
        rows += _rows(name, config, run / "log.jsonl")
    write_csv(output / "networks.csv", rows)
    write_plot(output / "networks.png", [lambda axes: _curves(axes, rows), lambda axes: _levels(axes, rows)])
    return rows


def final_rows(rows: list[Row]) -> list[Row]:
    """Last row of each run, best mean first."""
    last = {row["name"]: row for row in rows}
    return sorted(last.values(), key=lambda row: -row["mean"])


def _rows(name: str, config: PriorConfig, log: Path) -> list[Row]:
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [
        {
            "name": name,
            "network": config.network,
            "prediction": "residual" if config.network == "gaussian-residual" else config.prediction_type,
            "weighting": config.weighting,
            "minutes": round(line["seconds"] / 60, 2),
            "samples": line["step"] * config.batch_size,
            **{f"{s:.2f}T": round(line["held_out"][f"x0_psnr/{s:.2f}T"], 3) for s in EVALUATION_SHARES},
            "mean": round(line["held_out"]["x0_psnr/mean"], 3),
        }
        for line in lines
        if "held_out" in line
    ]


def _curves(axes: Axes, rows: list[Row]) -> None:
    for name, color in _colors(rows).items():
        own = [row for row in rows if row["name"] == name]
        axes.plot([row["minutes"] for row in own], [row["mean"] for row in own], marker=".", color=color, label=name)
    axes.set(xlabel="minutes of computing", ylabel="x0-PSNR, mean of ten levels (dB)", title="held-out faces")


def _levels(axes: Axes, rows: list[Row]) -> None:
    colors = _colors(rows)
    for row in final_rows(rows):
        levels = [row[f"{s:.2f}T"] for s in EVALUATION_SHARES]
        axes.plot(EVALUATION_SHARES, levels, marker=".", color=colors[row["name"]], label=row["name"])
    axes.set(xlabel="noise level t / T", ylabel="x0-PSNR (dB)", title="at the end")


def _colors(rows: list[Row]) -> dict[str, str]:
    return {name: f"C{index}" for index, name in enumerate(dict.fromkeys(row["name"] for row in rows))}
