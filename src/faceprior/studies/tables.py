"""What every study leaves behind: a CSV file and a plot."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faceprior.errors import OptionError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write rows of equal keys; the header is the first row's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_plot(path: Path, draw: Sequence[Callable[[Axes], object]]) -> None:
    """Write a picture of axes side by side, each drawn by a function.

    Raises:
        OptionError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OptionError("plots need matplotlib; install it with: pip install 'faceprior[study]'") from error
    figure = Figure(figsize=(5.2 * len(draw), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for index, one in enumerate(draw):
        one(figure.add_subplot(1, len(draw), index + 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
