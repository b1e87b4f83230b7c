"""Plots of a report: distortion against perception, speed against quality."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from faceprior.benchmark.metrics import METRICS, Metric
from faceprior.benchmark.summary import MethodSummary
from faceprior.errors import OptionError

PERCEPTION = ("auc", "lpips_vgg", "lpips_alex", "fid", "frechet", "niqe", "musiq")
"""What stands for perception in a plot: the first that was measured."""

QUALITY = ("lpips_vgg", "lpips_alex", "identity", "psnr", "musiq", "lr_consistency")
"""What stands for quality beside speed, and what orders faces from best to worst: the first that was measured."""


def require_matplotlib() -> None:
    """Find out whether plots can be drawn, before the work; raises OptionError where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise OptionError("plots need matplotlib; install it with: pip install 'faceprior[research]'")


def write_plots(path: Path, summaries: Sequence[MethodSummary]) -> bool:
    """Draw what the methods of one condition allow; returns whether there was anything to draw.

    Raises:
        OptionError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    pairs = [(_first(summaries, ("psnr",)), _first(summaries, PERCEPTION))]
    pairs += [(_first(summaries, ("seconds",)), _first(summaries, QUALITY))]
    drawn = [(x, y) for x, y in pairs if x and y]
    if not drawn:
        return False
    figure = Figure(figsize=(4.6 * len(drawn) + 1.8, 3.8), layout="constrained")
    for index, (x, y) in enumerate(drawn):
        axes = figure.add_subplot(1, len(drawn), index + 1)
        for summary in summaries:
            (across, xerr), (up, yerr) = (_place(summary, metric) for metric in (x, y))
            axes.errorbar([across], [up], xerr=xerr, yerr=yerr, fmt="o", capsize=2, lw=0.8, label=summary.method)
        if x.name == "seconds":
            axes.set_xscale("log")
        axes.set(xlabel=_axis(x), ylabel=_axis(y))
        axes.grid(alpha=0.3)
    lines, labels = axes.get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside right upper", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return True


def _first(summaries: Sequence[MethodSummary], names: Sequence[str]) -> Metric | None:
    """Return the first metric that all the summaries have."""
    return next((METRICS[name] for name in names if all(name in own.figures for own in summaries)), None)


def _place(summary: MethodSummary, metric: Metric) -> tuple[float, Any]:
    own = summary.figures[metric.name]
    return own.mean, [[max(0.0, own.mean - own.low)], [max(0.0, own.high - own.mean)]]


def _axis(metric: Metric) -> str:
    return metric.title + (f" ({metric.better} is better)" if metric.better in ("higher", "lower") else "")
