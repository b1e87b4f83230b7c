"""Figures of whole sets: from the kept pictures, and the embeddings in the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch

from faceprior.benchmark.config import BenchmarkConfig
from faceprior.benchmark.datasets import open_faces
from faceprior.benchmark.metrics import INSTALL, METRICS, Meters, missing_if_it_fails
from faceprior.benchmark.results import Row
from faceprior.errors import DataError, FacePriorError
from faceprior.evaluation.intervals import Interval
from faceprior.evaluation.two_sample import MIN_FACES, two_sample_auc
from faceprior.images import read_image, resize, to_tensor, to_uint8

_AT_ONCE = 32

SetFigures = Callable[[Sequence[Row]], dict[str, Interval]]
"""Figures of a set of restorations: of the rows of one method, damage and seed, one of each face."""


class SetMeters:
    """The figures of sets that can be measured here.

    Attributes:
        missing: why a figure that was wanted cannot be computed.
        reference: what FID and KID compare with, in words.
    """

    def __init__(self, config: BenchmarkConfig, meters: Meters, output: Path) -> None:
        self.output, self.meters = output, meters
        wanted = config.metrics or METRICS
        self.wanted = [own.name for own in METRICS.values() if own.kind == "set" and own.name in wanted]
        has_truth = any(damage.has_truth for damage in config.damages())
        self.missing: dict[str, str] = {}
        truth = "the true faces of the same run" if has_truth else "nothing: the true faces are not known"
        self.reference = config.reference or truth
        self._features: Callable[[Iterator[torch.Tensor]], torch.Tensor] | None = None
        self._reference: torch.Tensor | None = None
        chosen = [name for name in ("fid", "kid") if name in self.wanted]
        if not chosen:
            return
        if not (has_truth or config.reference):
            unknown = "the true faces are not known; name a folder of sharp ones with --set reference=FOLDER"
            self.missing.update(dict.fromkeys(chosen, unknown))
            return
        try:
            self._features = inception_features(meters.options.device)
        except FacePriorError as error:
            self.missing.update(dict.fromkeys(chosen, str(error)))
            return
        if config.reference:
            faces, side = open_faces([config.reference]).faces, meters.options.resolution
            self.reference = f"{len(faces)} faces of {config.reference}"
            self._reference = self._features(resize(face.picture((), side)[None], side)[0] for face in faces)

    def __call__(self, rows: Sequence[Row]) -> dict[str, Interval]:
        """Measure a set; see `SetFigures`."""
        if len(rows) < 2:
            return {}
        found: dict[str, float] = {}
        has_truth = all(row["truth"] for row in rows)
        if self._features is not None and (self._reference is not None or has_truth):
            reference = self._reference
            if reference is None:
                reference = self._features(self._pictures(rows, "truth"))
            features = self._features(self._pictures(rows, "image"))
            found["fid"], found["kid"] = frechet_distance(features, reference), kid(features, reference)
        if self.meters.embeds and has_truth and all(row["embedding"] for row in rows):
            embeddings = torch.tensor([row["embedding"] for row in rows], dtype=torch.float64)
            truth = [self.meters.embed_file(self.output / row["truth"]) for row in rows]
            found["frechet"] = frechet_distance(embeddings, torch.cat([own for own in truth if own is not None]))
        figures = {name: Interval(value, value, value, len(rows)) for name, value in found.items()}
        if "auc" in self.wanted and has_truth and len(rows) >= MIN_FACES:
            restored, real = (torch.stack(list(self._pictures(rows, column))) for column in ("image", "truth"))
            figures["auc"] = two_sample_auc(restored, real)
        return {name: figure for name, figure in figures.items() if name in self.wanted}

    def _pictures(self, rows: Sequence[Row], column: str) -> Iterator[torch.Tensor]:
        return (to_tensor(read_image(self.output / row[column])) for row in rows)


def inception_features(device: torch.device) -> Callable[[Iterator[torch.Tensor]], torch.Tensor]:
    """Load torch-fidelity's Inception-v3 (the weights of the original FID), as torchmetrics wraps it.

    Returns:
        What turns pictures, each (3, R, R) in [-1, 1], into features, (B, 2048).

    Raises:
        FacePriorError: torch-fidelity or its weights are missing.
    """
    with missing_if_it_fails(f"FID and KID need torch-fidelity, which cannot be imported: {INSTALL}"):
        import torch_fidelity  # noqa: F401 - torchmetrics wants it
    from torchmetrics.image.fid import NoTrainInceptionV3

    with missing_if_it_fails(
        "FID and KID: Inception's weights cannot be loaded ({reason}); put torch-fidelity's file into"
        " $TORCH_HOME/hub/checkpoints"
    ):
        network = NoTrainInceptionV3("inception-v3-compat", ["2048"]).to(device)

    @torch.no_grad()
    def features(pictures: Iterator[torch.Tensor]) -> torch.Tensor:
        batches = iter(lambda: list(islice(pictures, _AT_ONCE)), [])
        return torch.cat([network(to_uint8(torch.stack(batch)).to(device)).cpu() for batch in batches])

    return features


def frechet_distance(embeddings: torch.Tensor, reference: torch.Tensor) -> float:
    """Squared Fréchet (2-Wasserstein) distance between Gaussians fitted to two sets (Dowson & Landau 1982).

    |μ₁ − μ₂|² + tr(C₁ + C₂ − 2 (C₁^½ C₂ C₁^½)^½), as FID has it (Heusel et al. 2017), with whatever embedding was
    taken, (N, D) and (M, D). It falls with the number of pictures: compare only sets of one size, against the same
    reference.

    Raises:
        DataError: a set has fewer than two members.
    """
    if min(len(embeddings), len(reference)) < 2:
        raise DataError("a Fréchet distance needs at least two faces in each set")
    a, b = embeddings.double(), reference.double()
    covariance, reference_covariance = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    # eigenvalues of C₁^½ C₂ C₁^½ are those of C₁ C₂, but of a symmetric matrix
    product = torch.linalg.eigvalsh(root @ reference_covariance @ root)
    overlap = product.clamp(min=0).sqrt().sum()
    shift = (a.mean(0) - b.mean(0)).square().sum()
    return float(shift + covariance.trace() + reference_covariance.trace() - 2 * overlap)


def kid(features: torch.Tensor, reference: torch.Tensor) -> float:
    """Kernel inception distance (Bińkowski et al. 2018) × 1000, of 100 subsets of at most 1000 images."""
    from torchmetrics.image.kid import poly_mmd

    size, generator = min(len(features), len(reference), 1000), torch.Generator().manual_seed(0)

    def subset(own: torch.Tensor) -> torch.Tensor:
        return own[torch.randperm(len(own), generator=generator)[:size]]

    return 1000 * float(torch.stack([poly_mmd(subset(reference), subset(features)) for _ in range(100)]).mean())
