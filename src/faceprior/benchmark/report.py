"""The report: one HTML file with everything inside, tables, plots and faces."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from faceprior import __version__
from faceprior.benchmark.metrics import METRICS, Metric
from faceprior.benchmark.results import Row
from faceprior.benchmark.summary import MethodSummary
from faceprior.errors import OutputError
from faceprior.evaluation.intervals import Interval
from faceprior.images import read_image
from faceprior.studies.tables import write_plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REPORT_FILE, SUMMARY_FILE, PLOTS = "report.html", "summary.json", "plots"

PERCEPTION = ("lpips_vgg", "lpips_alex", "fid", "frechet", "niqe", "musiq")
"""What stands for perception in a plot: the first that was measured."""

QUALITY = ("lpips_vgg", "lpips_alex", "identity", "psnr", "musiq", "lr_consistency")
"""What stands for quality beside speed, and what orders faces from best to worst: the first that was measured."""

_SIDE = 160  # of a face in the report, in pixels


@dataclass(frozen=True)
class About:
    """What a report says of its benchmark.

    Attributes:
        title: of the report.
        command: command line.
        config: all options.
        faces: number of faces.
        dataset: name of the set.
        baseline: label of the method that the others are compared with.
        missing: why figures are missing, by name.
        prior: name and sha256.
        corrector: name and sha256.
        identity: what measures it, and from where two faces count as one person.
        reference: what FID and KID compare with.
    """

    title: str
    command: str
    config: dict[str, Any]
    faces: int
    dataset: str
    baseline: str
    missing: dict[str, str]
    prior: str
    corrector: str
    identity: str
    reference: str


def write_summary(path: Path, about: About, summaries: Sequence[MethodSummary]) -> None:
    """Write everything that was measured as JSON; raises OutputError if it cannot be."""
    values = {"faceprior": __version__, **asdict(about), "summary": [asdict(own) for own in summaries]}
    _write(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def write_report(path: Path, about: About, summaries: Sequence[MethodSummary], rows: Sequence[Row]) -> None:
    """Write the report, with pictures from the folder it stands in, and its plots as files of their own.

    Raises:
        OptionError: matplotlib is not installed.
        OutputError: it cannot be written.
    """
    body = [f"<h1>{html.escape(about.title)}</h1>", _facts(about), *_missing(about.missing)]
    for (degradation, scale), own in by_condition(summaries).items():
        body.append(f"<h2>×{scale:g} {html.escape(degradation)}</h2>")
        body.append(_table(own, figure_text, about.baseline))
        if len(own) > 1:
            body.append(f"<h3>Paired differences from {html.escape(about.baseline)}</h3>")
            others = [summary for summary in own if summary.method != about.baseline]
            body.append(_table(others, _difference_text, about.baseline, of_sets=False))
        body.append(_plots(path.parent, own))
        chosen = [row for row in rows if (row["degradation"], row["scale"]) == (degradation, scale)]
        body += _faces(path.parent, chosen, [summary.method for summary in own])
    body.append(_definitions())
    page = f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(about.title)}</title>'
    _write(path, f"{page}<style>{_STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n")


def by_condition(summaries: Sequence[MethodSummary]) -> dict[tuple[str, float], list[MethodSummary]]:
    """Group summaries by degradation and scale, in their order."""
    found: dict[tuple[str, float], list[MethodSummary]] = {}
    for summary in summaries:
        found.setdefault((summary.degradation, summary.scale), []).append(summary)
    return found


def columns_of(summaries: Sequence[MethodSummary]) -> list[Metric]:
    """Return the metrics that any of the summaries has, in the order of tables."""
    return [
        metric
        for name, metric in METRICS.items()
        if any(name in summary.figures or name in summary.set_figures for summary in summaries)
    ]


def figure_text(summary: MethodSummary, metric: Metric, *, with_interval: bool = True) -> str:
    """Return the mean of a figure, and its interval, as text; a dash where it was not measured."""
    if metric.kind == "set":
        value = summary.set_figures.get(metric.name)
        return "–" if value is None else f"{value:.{metric.digits}f}"
    interval = summary.figures.get(metric.name)
    return _interval_text(interval, metric, "" if with_interval else None)


def _interval_text(interval: Interval | None, metric: Metric, sign: str | None) -> str:
    if interval is None:
        return "–"
    digits, plus = metric.digits, sign or ""
    text = f"{interval.mean:{plus}.{digits}f}"
    if sign is None or interval.faces == 1 or metric.kind == "cost":
        return text
    return f"{text} [{interval.low:{plus}.{digits}f}, {interval.high:{plus}.{digits}f}]"


def _difference_text(summary: MethodSummary, metric: Metric) -> str:
    return _interval_text(summary.differences.get(metric.name), metric, "+")


def _table(
    summaries: Sequence[MethodSummary],
    text: Callable[[MethodSummary, Metric], str],
    baseline: str,
    *,
    of_sets: bool = True,
) -> str:
    """A row for each figure, a column for each method."""
    arrows = {"higher": " ↑", "lower": " ↓", "": ""}
    heads = (
        f"{summary.method}{' (baseline)' if summary.method == baseline else ''}"
        f"{f', {summary.failed} failed' if summary.failed else ''}"
        for summary in summaries
    )
    lines = ["<tr><th></th>" + "".join(f"<th>{html.escape(head)}</th>" for head in heads) + "</tr>"]
    for metric in columns_of(summaries):
        if metric.kind == "set" and not of_sets:
            continue
        cells = "".join(
            f"<td{_class(summary, metric, summaries) if of_sets else ''}>{_two_lines(text(summary, metric))}</td>"
            for summary in summaries
        )
        lines.append(f"<tr><th>{html.escape(metric.title)}{arrows[metric.better]}</th>{cells}</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _two_lines(text: str) -> str:
    mean, bracket, interval = text.partition(" [")
    return f"{mean} <small>[{interval}</small>" if bracket else mean


def _class(summary: MethodSummary, metric: Metric, others: Sequence[MethodSummary]) -> str:
    values = [own for other in others if (own := mean_of(other, metric.name)) is not None]
    own = mean_of(summary, metric.name)
    if own is None or not metric.better or metric.kind == "cost" or len(values) < 2:
        return ""
    best = max(values) if metric.better == "higher" else min(values)
    return ' class="best"' if own == best else ""


def mean_of(summary: MethodSummary, name: str) -> float | None:
    """Return the value of a figure, of faces or of the set; None if it was not measured."""
    if name in summary.figures:
        return summary.figures[name].mean
    return summary.set_figures.get(name)


def _facts(about: About) -> str:
    seeds = ", ".join(map(str, about.config["seeds"]))
    facts = {
        "faces": f"{about.faces} of {about.dataset}" + (f", {own}" if (own := about.config["subset"]) else ""),
        "seeds": f"{seeds}; {about.config['samples']} sample(s) each",
        "prior": about.prior,
        "corrector": about.corrector,
        "identity": about.identity,
        "FID and KID against": about.reference,
        "made by": f"faceprior {__version__}: {about.command}",
    }
    rows = "".join(f"<tr><th>{name}</th><td>{html.escape(text)}</td></tr>" for name, text in facts.items())
    return f'<table class="facts">{rows}</table>'


def _missing(missing: dict[str, str]) -> Iterator[str]:
    if missing:
        lines = "".join(
            f"<li><b>{html.escape(METRICS[name].title)}</b>: {html.escape(reason)}</li>"
            for name, reason in missing.items()
        )
        yield f"<details><summary>{len(missing)} figures are missing</summary><ul>{lines}</ul></details>"


def _definitions() -> str:
    return (
        "<h2>How to read it</h2><p>A figure is the mean over faces; a face's own is the mean of its seeds and"
        " samples. [low, high] is the 95 % percentile interval of the bootstrap over faces. A paired difference is"
        " the method's less the baseline's on the same faces. Figures of sets are of the first samples, mean over"
        " seeds, and depend on the number of faces. Bold is best. All is measured on 8-bit pictures.</p>"
    )


# --- plots


def _plots(folder: Path, summaries: Sequence[MethodSummary]) -> str:
    drawn: list[Callable[[Axes], object]] = []
    perception = _first(summaries, PERCEPTION)
    distortion = _first(summaries, ("psnr",))
    quality = _first(summaries, QUALITY)
    if perception and distortion:
        drawn.append(lambda axes: _scatter(axes, summaries, distortion, perception, "perception and distortion"))
    if quality and _first(summaries, ("seconds",)):
        drawn.append(lambda axes: _scatter(axes, summaries, METRICS["seconds"], quality, "speed and quality"))
    if not drawn:
        return ""
    path = folder / PLOTS / f"{summaries[0].degradation}-x{summaries[0].scale:g}.png"
    write_plot(path, drawn)
    return f'<img alt="plots" src="{_data_url(path.read_bytes(), "png")}">'


def _first(summaries: Sequence[MethodSummary], names: Sequence[str]) -> Metric | None:
    """Return the first metric that all the summaries have."""
    return next(
        (METRICS[name] for name in names if all(mean_of(summary, name) is not None for summary in summaries)), None
    )


def _scatter(axes: Axes, summaries: Sequence[MethodSummary], x: Metric, y: Metric, title: str) -> None:
    for summary in summaries:
        across, up = mean_of(summary, x.name), mean_of(summary, y.name)
        assert across is not None  # noqa: S101 - all have both
        assert up is not None  # noqa: S101
        xerr, yerr = _error(summary, x), _error(summary, y)
        axes.errorbar([across], [up], xerr=xerr, yerr=yerr, fmt="o", capsize=2, elinewidth=0.8, label=summary.method)
    if x.name == "seconds":
        axes.set_xscale("log")
    arrows = {"higher": "higher is better", "lower": "lower is better", "": ""}
    axes.set(xlabel=f"{x.title} ({arrows[x.better]})", ylabel=f"{y.title} ({arrows[y.better]})", title=title)


def _error(summary: MethodSummary, metric: Metric) -> list[list[float]] | None:
    own = summary.figures.get(metric.name)
    return None if own is None else [[max(0.0, own.mean - own.low)], [max(0.0, own.high - own.mean)]]


# --- faces


def _faces(folder: Path, rows: Sequence[Row], methods: Sequence[str]) -> Iterator[str]:
    done = [row for row in rows if row["error"] is None and row["sample"] == 1]
    metric = next((METRICS[name] for name in QUALITY if done and all(row[name] is not None for row in done)), None)
    if metric is None:
        return
    yield f"<h3>Best, median and worst faces by {html.escape(metric.title)}</h3>"
    lines = []
    for method in methods:
        own = sorted((row for row in done if row["method"] == method), key=lambda row: row[metric.name])
        if not own:
            continue
        if metric.better == "higher":
            own.reverse()
        places = (("best", 0), ("median", (len(own) - 1) // 2), ("worst", len(own) - 1))
        cells = "".join(
            _face(folder, own[index], f"{place}: {own[index][metric.name]:.{metric.digits}f}")
            for place, index in places
        )
        lines.append(f"<tr><th>{html.escape(method)}</th>{cells}</tr>")
    yield f'<div class="wide"><table class="sheet">{"".join(lines)}</table></div>'


def _face(folder: Path, row: Row, text: str) -> str:
    pictures = [("true", row["truth"]), ("input", row["input"]), ("restored", row["image"])]
    shown = "".join(
        f'<figure><img alt="{what}" src="{_picture(folder / name)}"><figcaption>{what}</figcaption></figure>'
        for what, name in pictures
        if name
    )
    return f"<td>{shown}<p>{html.escape(text)}<br><small>{html.escape(row['face'])}</small></p></td>"


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


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(text.encode("utf-8", "backslashreplace"))  # file names need not be UTF-8
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another --output") from error


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: .7rem 0; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, .facts td { text-align: left; }
.facts td { white-space: normal; overflow-wrap: anywhere; }
.best { font-weight: 700; }
.wide { overflow-x: auto; }
.sheet td { text-align: left; vertical-align: top; }
figure { display: inline-block; margin: 0 .3rem 0 0; }
figcaption, small { color: #666; font-size: .8rem; }
img { max-width: 100%; }
figure img { display: block; width: 104px; height: 104px; }
.sheet p { margin: .2rem 0; }
"""
