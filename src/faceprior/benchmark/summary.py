"""Means over faces with bootstrap intervals, and paired differences from a baseline."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from faceprior.benchmark.datasets import group_faces
from faceprior.benchmark.metrics import METRICS
from faceprior.benchmark.results import Row
from faceprior.benchmark.sets import SetFigures
from faceprior.evaluation.intervals import Interval, bootstrap


@dataclass(frozen=True)
class MethodSummary:
    """Figures of one method under one condition.

    Attributes:
        degradation: how inputs are made.
        scale: R/n.
        group: label and value of the faces, "age 60+"; "" for all faces.
        method: label.
        faces: number of faces that were restored.
        failed: number of faces, times seeds, that were not.
        figures: by name, over faces; a face's own is the mean of its seeds and samples. Those of sets are of the
            first samples, mean over seeds, and only of all faces, as they depend on how many there are.
        differences: by name, paired: the method's less the baseline's on the same faces; empty for the baseline.
    """

    degradation: str
    scale: float
    group: str
    method: str
    faces: int
    failed: int
    figures: dict[str, Interval]
    differences: dict[str, Interval] = field(default_factory=dict)

    @property
    def case(self) -> str:
        """Input and group in words, "×8 bicubic, age 60+"."""
        return f"×{self.scale:g} {self.degradation}" + (f", {self.group}" if self.group else "")


def summarise(
    rows: Sequence[Row],
    methods: Sequence[str],
    baseline: str,
    set_figures: SetFigures = lambda _: {},
    by: Sequence[str] = (),
) -> list[MethodSummary]:
    """Summarise the rows of a benchmark, a damage after the other.

    Args:
        rows: of the table.
        methods: labels, in the order of tables.
        baseline: the one that the others are compared with.
        set_figures: measures sets.
        by: labels of the faces, whose values are summarised too; OptionError if no face has one.
    """
    found = []
    for degradation, scale in dict.fromkeys((row["degradation"], row["scale"]) for row in rows):
        condition = [row for row in rows if (row["degradation"], row["scale"]) == (degradation, scale)]
        for group, own in {"": condition, **dict(_groups(condition, by))}.items():
            per_method = {method: [row for row in own if row["method"] == method] for method in methods}
            base = _by_face(per_method[baseline])
            for method, all_rows in per_method.items():
                done = [row for row in all_rows if row["error"] is None]
                by_face = _by_face(all_rows)
                figures = {name: bootstrap(list(values.values())) for name, values in by_face.items()}
                if not group:
                    figures |= _of_sets(done, set_figures)
                faces, failed = len({row["face"] for row in done}), len(all_rows) - len(done)
                differences = {} if method == baseline else _differences(by_face, base)
                found.append(MethodSummary(degradation, scale, group, method, faces, failed, figures, differences))
    return found


def _groups(rows: Sequence[Row], by: Sequence[str]) -> Iterator[tuple[str, list[Row]]]:
    labels = [json.loads(row["labels"] or "{}") for row in rows]
    for name in by:
        for value, members in group_faces(labels, name).items():
            yield f"{name} {value}", [rows[index] for index in members]


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
    own: Mapping[str, Mapping[str, float]], base: Mapping[str, Mapping[str, float]]
) -> dict[str, Interval]:
    found = {}
    for name, values in own.items():
        both = [face for face in values if face in base.get(name, {})]
        if both:
            found[name] = bootstrap([values[face] - base[name][face] for face in both])
    return found


def _of_sets(rows: Sequence[Row], set_figures: SetFigures) -> dict[str, Interval]:
    """Figures of the first samples of each seed, and their means over seeds."""
    seeds = dict.fromkeys(row["seed"] for row in rows)
    per_seed = [set_figures([row for row in rows if row["seed"] == seed and row["sample"] <= 1]) for seed in seeds]
    found = {}
    for name in dict.fromkeys(name for figures in per_seed for name in figures):
        own = [figures[name] for figures in per_seed]
        mean, low, high = (statistics.fmean(getattr(one, part) for one in own) for part in ("mean", "low", "high"))
        found[name] = Interval(mean, low, high, own[0].faces)
    return found
