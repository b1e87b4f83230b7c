"""The report: one HTML file with everything inside, tables, plots and faces."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

from faceprior import __version__
from faceprior.benchmark.metrics import METRICS, Metric
from faceprior.benchmark.results import Row
from faceprior.benchmark.run import Benchmark
from faceprior.benchmark.summary import MethodSummary
from faceprior.errors import OptionError
from faceprior.evaluation.intervals import Interval
from faceprior.images import read_image
from faceprior.images.writing import write_file

REPORT_FILE, SUMMARY_FILE, PLOTS = "report.html", "summary.json", "plots"

PERCEPTION = ("auc", "lpips_vgg", "lpips_alex", "fid", "frechet", "niqe", "musiq")
"""What stands for perception in a plot: the first that was measured."""

QUALITY = ("lpips_vgg", "lpips_alex", "identity", "psnr", "musiq", "lr_consistency")
"""What stands for quality beside speed, and what orders faces from best to worst: the first that was measured."""

_ARROWS = {"higher": " ↑", "lower": " ↓", "zero": " → 0", "": ""}
_SIDE = 160  # of a face in the report, in pixels


def require_matplotlib() -> None:
    """Find out whether plots can be drawn, before the work; raises OptionError where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise OptionError("plots need matplotlib; install it with: pip install 'faceprior[research]'")


def about(benchmark: Benchmark, command: str) -> dict[str, Any]:
    """Return what a report says of its benchmark, and of the command line that ran it."""
    config, options, pipeline = benchmark.config, benchmark.meters.options, benchmark.pipeline
    prior, corrector = pipeline.prior.card, pipeline.corrector_card
    return {
        "faceprior": __version__,
        "title": config.title,
        "command": command,
        "config": config.model_dump(),
        "faces": len(benchmark.faces.faces),
        "dataset": benchmark.faces.name,
        "baseline": benchmark.baseline,
        "missing": benchmark.missing,
        "prior": f"{prior.name} (sha256 {prior.sha256})",
        "corrector": f"{corrector.name} (sha256 {corrector.sha256})" if corrector else "none",
        "identity": f"{options.identity_network}; same person from cosine {options.same_person:g}",
        "reference": benchmark.set_meters.reference,
    }


def write_report(
    folder: Path, about: dict[str, Any], summaries: Sequence[MethodSummary], rows: Sequence[Row]
) -> None:
    """Write everything that was measured as JSON, and the report with its pictures; plots are files of their own too.

    The folder holds the pictures of the rows.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    values = {**about, "summary": [asdict(own) for own in summaries]}
    write_file(folder / SUMMARY_FILE, _encoded(json.dumps(values, indent=2, ensure_ascii=False)))
    environment = Environment(
        loader=PackageLoader("faceprior.benchmark", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    page = environment.get_template("report.html.jinja").render(
        about=about,
        metrics=METRICS,
        arrows=_ARROWS,
        text=figure_text,
        sections=[_section(folder, own, rows) for own in by_case(summaries).values()],
    )
    write_file(folder / REPORT_FILE, _encoded(page))


def _encoded(text: str) -> bytes:
    return f"{text}\n".encode("utf-8", "backslashreplace")  # file names need not be UTF-8


def by_case(summaries: Sequence[MethodSummary]) -> dict[str, list[MethodSummary]]:
    """Group summaries by input and group of faces, in their order."""
    found: dict[str, list[MethodSummary]] = {}
    for summary in summaries:
        found.setdefault(summary.case, []).append(summary)
    return found


def columns_of(summaries: Sequence[MethodSummary]) -> list[Metric]:
    """Return the metrics that any of the summaries has, in the order of tables."""
    return [metric for name, metric in METRICS.items() if any(name in summary.figures for summary in summaries)]


def figure_text(figure: Interval | None, metric: Metric, sign: str = "") -> str:
    """Return a figure and its interval, where there is one, as text, with sign "+" also positive ones' sign."""
    if figure is None:
        return "–"
    form = f"{sign}.{metric.digits}f"
    if metric.kind == "cost" or figure.low == figure.high:
        return f"{figure.mean:{form}}"
    return f"{figure.mean:{form}} [{figure.low:{form}}, {figure.high:{form}}]"


def _section(folder: Path, own: Sequence[MethodSummary], rows: Sequence[Row]) -> dict[str, Any]:
    """What the template shows of one input and group."""
    first, metrics = own[0], columns_of(own)
    section = {
        "case": first.case,
        "faces": max(summary.faces for summary in own),
        "summaries": own,
        "metrics": metrics,
        "best": {metric.name: _best(own, metric) for metric in metrics},
        "plots": None,
        "sheet": None,
    }
    if first.group:
        return section
    plots = folder / PLOTS / f"{first.degradation}-x{first.scale:g}.png"
    if _write_plots(plots, own):
        section["plots"] = _data_url(plots.read_bytes(), "png")
    chosen = [row for row in rows if (row["degradation"], row["scale"]) == (first.degradation, first.scale)]
    done = [row for row in chosen if row["error"] is None and row["sample"] <= 1]
    metric = next((METRICS[name] for name in QUALITY if done and all(row[name] is not None for row in done)), None)
    if metric is not None:
        section["ordered_by"] = metric.title
        section["sheet"] = {
            summary.method: list(_faces(folder, [row for row in done if row["method"] == summary.method], metric))
            for summary in own
        }
    return section


def _write_plots(path: Path, summaries: Sequence[MethodSummary]) -> bool:
    """Draw distortion against perception, and speed against quality; returns whether there was anything to draw."""
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


def _best(summaries: Sequence[MethodSummary], metric: Metric) -> str | None:
    """Label of the best method; None where there is none."""
    values = {own.method: own.figures[metric.name].mean for own in summaries if metric.name in own.figures}
    if not metric.better or metric.kind == "cost" or len(values) < 2:
        return None
    worth = {"higher": lambda value: value, "lower": lambda value: -value, "zero": lambda value: -abs(value)}
    return max(values, key=lambda method: worth[metric.better](values[method]))


def _faces(folder: Path, rows: Sequence[Row], metric: Metric) -> Iterator[dict[str, Any]]:
    """Best, median and worst face of one method, with their pictures."""
    ordered = sorted(rows, key=lambda row: row[metric.name], reverse=metric.better == "higher")
    if not ordered:
        return
    for place, index in (("best", 0), ("median", (len(ordered) - 1) // 2), ("worst", len(ordered) - 1)):
        row = ordered[index]
        shown = {"true": row["truth"], "input": row["input"], "restored": row["image"]}
        yield {
            "name": row["face"],
            "text": f"{place}: {row[metric.name]:.{metric.digits}f}",
            "pictures": {what: _picture(folder / name) for what, name in shown.items() if name},
        }


def _picture(path: Path) -> str:
    image = read_image(path)
    if image.width != _SIDE:
        enlarged = image.width < _SIDE  # pixels of a small input are shown as they are
        image = image.resize((_SIDE, _SIDE), Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=90)
    return _data_url(buffer.getvalue(), "webp")


def _data_url(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
