"""What figures of whole sets are computed from: the kept pictures, and the embeddings in the table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from faceprior.benchmark.datasets import open_faces
from faceprior.benchmark.metrics import Features, InceptionFeatures, Meters
from faceprior.benchmark.results import Row
from faceprior.errors import FacePriorError
from faceprior.images import read_image, resize, to_tensor

INCEPTION = ("fid", "kid", "inception_score")

_AT_ONCE = 32


class SetInputs:
    """Gives Inception features and identity embeddings of sets of rows; see `faceprior.benchmark.summary.SetInputs`.

    Args:
        output: folder of the benchmark.
        meters: which tell what is wanted and embed the true faces.
        wanted: names of metrics; empty takes all.
        reference: folder of faces for FID and KID; "" takes the true faces of the rows.
        has_truth: whether there are true faces.

    Attributes:
        missing: why a figure that was wanted cannot be computed.
        reference_faces: number of faces in `reference`; None if that is not given.
    """

    def __init__(
        self, output: Path, meters: Meters, wanted: Sequence[str], reference: str = "", *, has_truth: bool = True
    ) -> None:
        self.output, self.meters = output, meters
        self.missing: dict[str, str] = {}
        self.reference_faces: int | None = None
        self._network: InceptionFeatures | None = None
        self._reference: Features | None = None
        self._true_embeddings: dict[str, torch.Tensor] = {}
        chosen = [name for name in INCEPTION if not wanted or name in wanted]
        self._frechet = meters.embeds and (not wanted or "frechet" in wanted)
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
            unknown = "the true faces are not known; name a folder of sharp ones with --reference"
            self.missing.update({name: unknown for name in chosen if name != "inception_score"})

    def _open_reference(self, folder: str) -> None:
        faces = open_faces([folder]).faces
        self.reference_faces = len(faces)
        side = self.meters.options.resolution
        pictures = (resize(face.picture((), side)[None], side)[0] for face in faces)
        self._reference = self._features(pictures)

    def __call__(
        self, rows: Sequence[Row]
    ) -> tuple[Features | None, Features | None, torch.Tensor | None, torch.Tensor | None]:
        """Return features and reference features, embeddings and true embeddings; None for what there is not."""
        has_truth = all(row["truth"] for row in rows)
        features = reference = embeddings = truths = None
        if self._network is not None:
            features = self._features(self._pictures(rows, "image"))
            reference = self._reference
            if reference is None and has_truth:
                reference = self._features(self._pictures(rows, "truth"))
        if self._frechet and has_truth and all(row["embedding"] for row in rows):
            embeddings = torch.tensor([row["embedding"] for row in rows], dtype=torch.float64)
            truths = torch.cat([self._true_embedding(row) for row in rows])
        return features, reference, embeddings, truths

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
