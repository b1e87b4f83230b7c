"""Means over faces with bootstrap intervals, and paired differences from a baseline."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from faceprior.benchmark.metrics import METRICS, Features, set_figures
from faceprior.benchmark.results import Row
from faceprior.evaluation.intervals import DRAWS, Interval, bootstrap


@dataclass(frozen=True)
class MethodSummary:
    """Figures of one method under one condition.

    Attributes:
        degradation: how inputs are made.
        scale: R/n.
        method: label.
        faces: number of faces that were restored.
        failed: number of faces, times seeds, that were not.
        figures: by name, over faces; a face's own is the mean of its seeds and samples.
        set_figures: by name: of the first samples, mean over seeds.
        differences: by name, paired: the method's less the baseline's on the same faces; empty for the baseline.
    """

    degradation: str
    scale: float
    method: str
    faces: int
    failed: int
    figures: dict[str, Interval]
    set_figures: dict[str, float] = field(default_factory=dict)
    differences: dict[str, Interval] = field(default_factory=dict)


SetInputs = Callable[
    [Sequence[Row]], tuple[Features | None, Features | None, torch.Tensor | None, torch.Tensor | None]
]
"""What set metrics are computed from, for the rows of one method, condition and seed: see `set_figures`."""


def summarise(
    rows: Sequence[Row],
    methods: Sequence[str],
    baseline: str,
    draws: int = DRAWS,
    set_inputs: SetInputs = lambda _: (None, None, None, None),
) -> list[MethodSummary]:
    """Summarise the rows of a benchmark, a condition after the other.

    Args:
        rows: see `faceprior.benchmark.results`.
        methods: labels, in the order of tables.
        baseline: the one that the others are compared with.
        draws: of the bootstrap.
        set_inputs: gives what set metrics are computed from.
    """
    conditions = dict.fromkeys((row["degradation"], row["scale"]) for row in rows)
    found = []
    for degradation, scale in conditions:
        own = [row for row in rows if (row["degradation"], row["scale"]) == (degradation, scale)]
        per_method = {method: [row for row in own if row["method"] == method] for method in methods}
        base = _by_face(per_method[baseline])
        for method, all_rows in per_method.items():
            done = [row for row in all_rows if row["error"] is None]
            by_face = _by_face(all_rows)
            found.append(
                MethodSummary(
                    degradation,
                    scale,
                    method,
                    len({row["face"] for row in done}),
                    len(all_rows) - len(done),
                    {name: bootstrap(list(values.values()), draws) for name, values in by_face.items()},
                    _set_figures(done, set_inputs),
                    {} if method == baseline else _differences(by_face, base, draws),
                )
            )
    return found


def _by_face(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Each figure of each face: mean of its seeds and samples; figures that no face has are left out."""
    found: dict[str, dict[str, float]] = {}
    for name, metric in METRICS.items():
        if metric.kind == "set":
            continue
        values: dict[str, list[float]] = {}
        for row in rows:
            if row["error"] is None and row[name] is not None:
                values.setdefault(row["face"], []).append(row[name])
        if values:
            found[name] = {face: statistics.fmean(own) for face, own in values.items()}
    return found


def _differences(
    own: Mapping[str, Mapping[str, float]], base: Mapping[str, Mapping[str, float]], draws: int
) -> dict[str, Interval]:
    found = {}
    for name, values in own.items():
        both = [face for face in values if face in base.get(name, {})]
        if both:
            found[name] = bootstrap([values[face] - base[name][face] for face in both], draws)
    return found


def _set_figures(rows: Sequence[Row], set_inputs: SetInputs) -> dict[str, float]:
    per_seed = []
    for seed in dict.fromkeys(row["seed"] for row in rows):
        first = [row for row in rows if row["seed"] == seed and row["sample"] == 1]
        if len(first) > 1:
            per_seed.append(set_figures(*set_inputs(first)))
    names = dict.fromkeys(name for figures in per_seed for name in figures)
    return {name: statistics.fmean(figures[name] for figures in per_seed) for name in names}
