"""Settings of a study, compared on the same held-out faces."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch

from faceprior.evaluation.figures import FIGURES, Evaluation, Mean, Summary, mean_of
from faceprior.evaluation.identity import Embedder
from faceprior.methods import Preset
from faceprior.pipeline import FacePriorPipeline
from faceprior.pipeline.held_out import Damage, evaluate_held_out
from faceprior.studies.tables import Row

COMPARED = ("psnr", "ssim", "lr_consistency", "identity")
"""Figures of a face by which two settings are compared, the higher the better."""


@dataclass(frozen=True)
class Measured:
    """One estimate in one setting.

    Attributes:
        setting: what distinguishes it from the others of the study, a column each.
        summary: means over the faces.
        values: figures of each face, by the names of `COMPARED`; those that were not measured are missing.
    """

    setting: Row
    summary: Summary
    values: Mapping[str, list[float]]

    @property
    def row(self) -> Row:
        """A row of the table: setting, case, and every figure with half its 95 % interval; empty if not measured."""
        case, means = self.summary.case, self.summary.means
        row = {
            **self.setting,
            "degradation": case.degradation,
            "scale": case.scale,
            "estimate": case.estimate,
            "corrector": case.corrector_text,
        }
        for name in dict.fromkeys((*FIGURES, *means)):
            mean = means.get(name)
            row[name], row[f"{name}_ci95"] = (mean.mean, mean.ci95) if mean else (None, None)
        return {**row, "frechet": self.summary.frechet}

    def lead(self, other: Measured, figure: str) -> Mean | None:
        """Return by how much a figure is above another setting's, the mean over faces of the difference.

        Each face is compared with itself, so the interval is far narrower than those of the two means.

        Args:
            other: measured on the same faces.
            figure: one of `COMPARED`; None is returned if it was not measured.
        """
        if figure not in self.values:
            return None
        return mean_of(a - b for a, b in zip(self.values[figure], other.values[figure], strict=True))


@dataclass(frozen=True)
class HeldOut:
    """Held-out faces, and how every setting of a study is measured on them (`evaluate_held_out`).

    Attributes:
        faces: sharp faces, (B, 3, R, R) in [-1, 1].
        samples: samples of each face.
        seed: face i is damaged and restored with seed + i.
        batch_size: samples that go through the networks together.
        embedder: measures identity; None leaves it out.
        on_faces: called with the number of faces that have just been restored.
    """

    faces: torch.Tensor
    samples: int = 2
    seed: int = 0
    batch_size: int = 8
    embedder: Embedder | None = None
    on_faces: Callable[[int], object] = lambda _: None

    def reporting(self, on_faces: Callable[[int], object]) -> HeldOut:
        """Return the same with another `on_faces`."""
        return replace(self, on_faces=on_faces)

    def measure(
        self,
        setting: Row,
        pipeline: FacePriorPipeline,
        damages: Sequence[Damage],
        preset: Preset,
        *,
        without_corrector: bool = False,
        regions: Mapping[str, torch.Tensor] | None = None,
    ) -> list[Measured]:
        """Measure bicubic, one sample and the mean for every damage; raises what `evaluate_held_out` raises."""
        evaluation = evaluate_held_out(
            pipeline,
            self.faces,
            damages,
            preset,
            samples=self.samples,
            seed=self.seed,
            batch_size=self.batch_size,
            without_corrector=without_corrector,
            embedder=self.embedder,
            regions=regions,
            on_faces=self.on_faces,
        )
        return [Measured(setting, summary, _values(evaluation, summary)) for summary in evaluation.summarise()]


def _values(evaluation: Evaluation, summary: Summary) -> dict[str, list[float]]:
    measured = [figure for figure in COMPARED if figure in summary.means]
    return {figure: cast("list[float]", evaluation.values(summary.case, figure)) for figure in measured}
