"""What every study leaves behind: a CSV file and a plot."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faceprior.errors import OptionError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]

LABELS = {
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "lr_consistency": "LR consistency (dB)",
    "identity": "identity",
    "frechet": "Fréchet",
    "psnr_eyes": "PSNR, eyes (dB)",
    "psnr_mouth": "PSNR, mouth (dB)",
    "psnr_skin": "PSNR, skin (dB)",
    "psnr_gain": "gain in PSNR (dB)",
    "identity_gain": "gain in identity",
    "tau": "τ",
    "stride": "stride k",
    "scale": "scale R/n",
    "steps": "steps",
}
"""What columns are called in tables and plots."""

_LINE_STYLES = {"sample": "-", "mean": "--", "bicubic": ":"}


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write rows of equal keys; the header is the first row's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def require_matplotlib() -> None:
    """Find out whether plots can be drawn, before the work; raises OptionError where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise OptionError("plots need matplotlib; install it with: pip install 'faceprior[research]'")


def write_plot(path: Path, draw: Sequence[Callable[[Axes], object]]) -> None:
    """Write a picture of axes, three a row, each drawn by a function, and one legend for all of them.

    Raises:
        OptionError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(len(draw), 3)
    rows = -(-len(draw) // columns)
    figure = Figure(figsize=(4.6 * columns + 1.8, 3.8 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    lines: dict[str, Any] = {}
    for index, one in enumerate(draw):
        axes = figure.add_subplot(rows, columns, index + 1)
        one(axes)
        axes.grid(alpha=0.3)
        for line, label in zip(*axes.get_legend_handles_labels(), strict=True):
            lines.setdefault(label, line)
    figure.legend(lines.values(), lines.keys(), loc="outside right upper", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def draw_lines(
    axes: Axes, rows: Sequence[Row], x: str, figure: str, lines: Sequence[str], *, intervals: bool = False
) -> None:
    """Draw a figure against a setting: a colour for each line, full for one sample, dashed for the mean.

    Args:
        axes: where.
        rows: of the table; those without the figure are left out.
        x: column of the setting, numbers; its values stand at equal distances.
        figure: column of the figure.
        lines: columns that distinguish the lines, besides the estimate.
        intervals: draw the 95 % intervals, too, from the column `…_ci95`.
    """
    values = sorted({row[x] for row in rows})
    points: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        name = ", ".join(filter(None, (_line_text(row, column) for column in lines)))
        points.setdefault((name, row["estimate"]), []).append(row)
    names = list(dict.fromkeys(name for name, _ in points))
    for (name, estimate), of_line in points.items():
        own = [row for row in of_line if row[figure] is not None]
        if not own:
            continue
        axes.errorbar(
            [values.index(row[x]) for row in own],
            [row[figure] for row in own],
            [row[f"{figure}_ci95"] or 0 for row in own] if intervals else None,
            color=f"C{names.index(name)}",
            linestyle=_LINE_STYLES[estimate],
            marker=".",
            capsize=3,
            label=", ".join(filter(None, (name, estimate))),
        )
    axes.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    axes.set(xlabel=LABELS[x], ylabel=LABELS[figure])
    if all(row[figure] is None for row in rows):
        axes.set_title("not measured")


def _line_text(row: Row, column: str) -> str:
    return f"{row[column]} corrector" if column == "corrector" and row[column] else str(row[column])
