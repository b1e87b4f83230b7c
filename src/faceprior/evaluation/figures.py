"""What an evaluation holds: figures of every face, and their means."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from faceprior.evaluation.frechet import frechet_distance
from faceprior.evaluation.identity import SAME_PERSON

Estimate = Literal["bicubic", "sample", "mean"]

FIGURES = ("psnr", "ssim", "lr_consistency", "identity", "same_person", "seconds")
"""What is known of a face, in the order of tables."""

_NORMAL_95 = 1.96


@dataclass(frozen=True)
class Case:
    """What was done to all faces alike.

    Attributes:
        degradation: "bicubic", or a preset of the real-world chain, which comes before the reduction.
        scale: R/n of the inputs.
        estimate: "bicubic" enlargement of the input, one "sample", or the "mean" of the samples.
        corrector: whether the corrector took part; None for bicubic.
    """

    degradation: str
    scale: float
    estimate: Estimate
    corrector: bool | None = None

    @property
    def corrector_text(self) -> str:
        """Whether the corrector took part, in a word: "with", "without", or nothing for bicubic."""
        return {None: "", True: "with", False: "without"}[self.corrector]


@dataclass(frozen=True)
class FaceFigures:
    """Figures of one face in one case.

    Attributes:
        face: its position among the evaluated faces.
        case: what was done to it.
        psnr: in dB.
        ssim: at most 1.
        lr_consistency: PSNR in dB between the reduced result and the input.
        identity: cosine similarity of embeddings of result and true face; None if it was not measured.
        seconds: of computation: for the mean all samples; None for bicubic.
        regions: PSNR in dB of each region, by name; empty if none was asked for.
    """

    face: int
    case: Case
    psnr: float
    ssim: float
    lr_consistency: float
    identity: float | None
    seconds: float | None
    regions: Mapping[str, float] = field(default_factory=dict)

    @property
    def same_person(self) -> float | None:
        """1 where the identity reaches `SAME_PERSON`, else 0; None if it was not measured."""
        return None if self.identity is None else float(self.identity >= SAME_PERSON)


@dataclass(frozen=True)
class Mean:
    """Mean over faces.

    Attributes:
        mean: the mean.
        ci95: half the width of its 95 % confidence interval, 1.96 standard errors; None for a single face.
    """

    mean: float
    ci95: float | None


@dataclass(frozen=True)
class Summary:
    """Figures of one case over faces.

    Attributes:
        case: the case.
        faces: number of faces.
        means: by name, those of `FIGURES` that were measured, and `psnr_NAME` of each region.
        frechet: Fréchet distance of dlib embeddings to the true faces, the same ones; None if it was not measured,
            and for groups, whose sizes differ.
    """

    case: Case
    faces: int
    means: dict[str, Mean]
    frechet: float | None


@dataclass
class Evaluation:
    """Figures of every face in every case.

    Attributes:
        rows: the figures.
        embeddings: of the results of a case, in the order of the faces, (B, 128); empty if not measured.
        true_embeddings: of the true faces, (B, 128); None if not measured.
    """

    rows: list[FaceFigures] = field(default_factory=list)
    embeddings: dict[Case, torch.Tensor] = field(default_factory=dict)
    true_embeddings: torch.Tensor | None = None

    def summarise(self) -> list[Summary]:
        """Means of each case over all faces."""
        return [Summary(case, len(rows), _means(rows), self._frechet(case)) for case, rows in self._cases(self.rows)]

    def summarise_group(self, faces: Iterable[int]) -> list[Summary]:
        """Means of each case over the faces at some positions."""
        members = frozenset(faces)
        rows_of = self._cases(row for row in self.rows if row.face in members)
        return [Summary(case, len(rows), _means(rows), None) for case, rows in rows_of]

    @staticmethod
    def _cases(rows: Iterable[FaceFigures]) -> Iterable[tuple[Case, list[FaceFigures]]]:
        rows_of: dict[Case, list[FaceFigures]] = {}
        for row in rows:
            rows_of.setdefault(row.case, []).append(row)
        return rows_of.items()

    def values(self, case: Case, figure: str) -> list[float | None]:
        """One of `FIGURES` of each face in a case, in the order of the faces."""
        return [getattr(row, figure) for row in self.rows if row.case == case]

    def _frechet(self, case: Case) -> float | None:
        if self.true_embeddings is None or len(self.true_embeddings) < 2:
            return None
        return frechet_distance(self.embeddings[case], self.true_embeddings)


def mean_of(values: Iterable[float]) -> Mean:
    """Mean and 95 % confidence interval of at least one value."""
    numbers = list(values)
    error = statistics.stdev(numbers) / math.sqrt(len(numbers)) if len(numbers) > 1 else None
    return Mean(statistics.fmean(numbers), None if error is None else _NORMAL_95 * error)


def _means(rows: Sequence[FaceFigures]) -> dict[str, Mean]:
    means = {}
    for name in FIGURES:
        values: list[Any] = [getattr(row, name) for row in rows]
        if None not in values:
            means[name] = mean_of(values)
    for name in rows[0].regions:
        means[f"psnr_{name}"] = mean_of(row.regions[name] for row in rows)
    return means
