"""Figures of whole sets: from the kept pictures, and the embeddings in the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from faceprior.benchmark.datasets import open_faces
from faceprior.benchmark.metrics import METRICS, Features, InceptionFeatures, Meters, fid, inception_score, kid
from faceprior.benchmark.results import Row
from faceprior.errors import FacePriorError
from faceprior.evaluation.frechet import frechet_distance
from faceprior.evaluation.intervals import Interval
from faceprior.evaluation.two_sample import MIN_FACES, two_sample_auc
from faceprior.images import read_image, resize, to_tensor

INCEPTION = ("fid", "kid", "inception_score")

_AT_ONCE = 32

SetFigures = Callable[[Sequence[Row]], dict[str, Interval]]
"""Figures of a set of restorations: of the rows of one method, condition and seed, one of each face."""


class SetMeters:
    """The figures of sets that can be measured here.

    Args:
        output: folder of the benchmark.
        meters: which embed the true faces.
        wanted: names of metrics; empty takes all.
        reference: folder of faces for FID and KID; "" takes the true faces of the rows.
        has_truth: whether there are true faces.
        draws: of the bootstrap.

    Attributes:
        missing: why a figure that was wanted cannot be computed.
        reference_faces: number of faces in `reference`; None if that is not given.
    """

    def __init__(
        self,
        output: Path,
        meters: Meters,
        wanted: Sequence[str],
        reference: str = "",
        *,
        has_truth: bool = True,
        draws: int = 2000,
    ) -> None:
        self.output, self.meters, self._draws = output, meters, draws
        self.wanted = [own.name for own in METRICS.values() if own.kind == "set" and own.name in (wanted or METRICS)]
        self.missing: dict[str, str] = {}
        self.reference_faces: int | None = None
        self._network: InceptionFeatures | None = None
        self._reference: Features | None = None
        self._true_embeddings: dict[str, torch.Tensor] = {}
        chosen = [name for name in INCEPTION if name in self.wanted]
        if not chosen:
            return
        try:
            self._network = InceptionFeatures(meters.options.device)
        except FacePriorError as error:
            self.missing.update(dict.fromkeys(chosen, str(error)))
            return
        if reference:
            self._open_reference(reference)
        elif not has_truth:
            unknown = "the true faces are not known; name a folder of sharp ones with --set reference=FOLDER"
            self.missing.update({name: unknown for name in chosen if name != "inception_score"})

    def _open_reference(self, folder: str) -> None:
        faces = open_faces([folder]).faces
        self.reference_faces = len(faces)
        side = self.meters.options.resolution
        pictures = (resize(face.picture((), side)[None], side)[0] for face in faces)
        self._reference = self._features(pictures)

    def __call__(self, rows: Sequence[Row]) -> dict[str, Interval]:
        """Measure a set; see `SetFigures`."""
        found: dict[str, float] = {}
        has_truth = all(row["truth"] for row in rows)
        if len(rows) < 2:
            return {}
        if self._network is not None:
            found |= self._inception(rows, has_truth=has_truth)
        if "frechet" in self.wanted and self.meters.embeds and has_truth and all(row["embedding"] for row in rows):
            embeddings = torch.tensor([row["embedding"] for row in rows], dtype=torch.float64)
            found["frechet"] = frechet_distance(embeddings, torch.cat([self._true_embedding(row) for row in rows]))
        figures = {name: Interval(value, value, value, len(rows)) for name, value in found.items()}
        if "auc" in self.wanted and has_truth and len(rows) >= MIN_FACES:
            restored, real = (torch.stack(list(self._pictures(rows, column))) for column in ("image", "truth"))
            figures["auc"] = two_sample_auc(restored, real, self._draws)
        return figures

    def _inception(self, rows: Sequence[Row], *, has_truth: bool) -> dict[str, float]:
        features = self._features(self._pictures(rows, "image"))
        reference = self._reference
        if reference is None and has_truth:
            reference = self._features(self._pictures(rows, "truth"))
        found = {"inception_score": inception_score(features.logits)}
        if reference is not None:
            found["fid"] = fid(features.pooled, reference.pooled)
            found["kid"] = kid(features.pooled, reference.pooled)
        return {name: value for name, value in found.items() if name in self.wanted}

    def _pictures(self, rows: Sequence[Row], column: str) -> Iterator[torch.Tensor]:
        return (to_tensor(read_image(self.output / row[column])) for row in rows)

    def _features(self, pictures: Iterator[torch.Tensor]) -> Features:
        assert self._network is not None  # noqa: S101 - asked for where there is one
        parts, batch = [], []
        for picture in pictures:
            batch.append(picture)
            if len(batch) == _AT_ONCE:
                parts.append(self._network(torch.stack(batch)))
                batch = []
        if batch:
            parts.append(self._network(torch.stack(batch)))
        return Features(torch.cat([own.pooled for own in parts]), torch.cat([own.logits for own in parts]))

    def _true_embedding(self, row: Row) -> torch.Tensor:
        if row["truth"] not in self._true_embeddings:
            embedding = self.meters.embed(to_tensor(read_image(self.output / row["truth"]))[None])
            assert embedding is not None  # noqa: S101 - it embeds
            self._true_embeddings[row["truth"]] = embedding
        return self._true_embeddings[row["truth"]]
