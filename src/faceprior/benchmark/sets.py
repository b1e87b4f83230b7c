"""Figures of whole sets: from the kept pictures, and the embeddings in the table."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from faceprior.benchmark.config import BenchmarkConfig
from faceprior.benchmark.datasets import open_faces
from faceprior.benchmark.metrics import INSTALL, METRICS, Meters, missing_if_it_fails
from faceprior.benchmark.results import Row
from faceprior.errors import DataError, FacePriorError
from faceprior.evaluation.intervals import Interval
from faceprior.evaluation.two_sample import MIN_FACES, two_sample_auc
from faceprior.images import read_image, resize, to_tensor, to_uint8

INCEPTION = ("fid", "kid", "inception_score")

_AT_ONCE = 32

SetFigures = Callable[[Sequence[Row]], dict[str, Interval]]
"""Figures of a set of restorations: of the rows of one method, damage and seed, one of each face."""


class SetMeters:
    """The figures of sets that can be measured here.

    Args:
        config: which figures are wanted, and against what.
        meters: which embed the true faces.
        output: folder of the benchmark.

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
        self._network: InceptionFeatures | None = None
        self._reference: Features | None = None
        chosen = [name for name in INCEPTION if name in self.wanted]
        if not chosen:
            return
        try:
            self._network = InceptionFeatures(meters.options.device)
        except FacePriorError as error:
            self.missing.update(dict.fromkeys(chosen, str(error)))
            return
        if config.reference:
            faces, side = open_faces([config.reference]).faces, meters.options.resolution
            self.reference = f"{len(faces)} faces of {config.reference}"
            self._reference = self._network.of(resize(face.picture((), side)[None], side)[0] for face in faces)
        elif not has_truth:
            unknown = "the true faces are not known; name a folder of sharp ones with --set reference=FOLDER"
            self.missing.update({name: unknown for name in chosen if name != "inception_score"})

    def __call__(self, rows: Sequence[Row]) -> dict[str, Interval]:
        """Measure a set; see `SetFigures`."""
        if len(rows) < 2:
            return {}
        found: dict[str, float] = {}
        has_truth = all(row["truth"] for row in rows)
        if self._network is not None:
            features, reference = self._network.of(self._pictures(rows, "image")), self._reference
            if reference is None and has_truth:
                reference = self._network.of(self._pictures(rows, "truth"))
            found["inception_score"] = inception_score(features.logits)
            if reference is not None:
                found["fid"] = frechet_distance(features.pooled, reference.pooled)
                found["kid"] = kid(features.pooled, reference.pooled)
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


class Features(NamedTuple):
    """What Inception makes of pictures: pooled, (B, 2048), and logits, (B, 1008)."""

    pooled: torch.Tensor
    logits: torch.Tensor


class InceptionFeatures:
    """torch-fidelity's Inception-v3 (the weights of the original FID), as torchmetrics wraps it.

    Raises:
        FacePriorError: torch-fidelity or its weights are missing.
    """

    def __init__(self, device: torch.device) -> None:
        with missing_if_it_fails(f"FID, KID and IS need torch-fidelity, which cannot be imported: {INSTALL}"):
            import torch_fidelity  # noqa: F401 - torchmetrics wants it
        from torchmetrics.image.fid import NoTrainInceptionV3

        with missing_if_it_fails(
            "FID, KID and IS: Inception's weights cannot be loaded ({reason}); put torch-fidelity's file into"
            " $TORCH_HOME/hub/checkpoints"
        ):
            network = NoTrainInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"])
        self._network, self._device = network.to(device), device

    @torch.no_grad()
    def of(self, pictures: Iterator[torch.Tensor]) -> Features:
        """Return the features of pictures, each (3, R, R) in [-1, 1]."""
        pooled, logits = [], []
        while batch := list(islice(pictures, _AT_ONCE)):
            # the network's own forward flattens what it returns; this one gives both layers
            both = self._network._torch_fidelity_forward(to_uint8(torch.stack(batch)).to(self._device))  # noqa: SLF001
            pooled.append(both[0].flatten(1).cpu())
            logits.append(both[1].flatten(1).cpu())
        return Features(torch.cat(pooled), torch.cat(logits))


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


class _Given(nn.Module):
    """Stands where torchmetrics wants a network: what comes in are features already."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.num_features = length

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def kid(features: torch.Tensor, reference: torch.Tensor) -> float:
    """Kernel inception distance (Bińkowski et al. 2018) × 1000, of 100 subsets of at most 1000 images."""
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(len(features), len(reference), 1000)
    with _quiet_and_seeded():
        metric = KernelInceptionDistance(feature=_Given(features.shape[1]), subset_size=size)
        metric.update(reference, real=True)
        metric.update(features, real=False)
        mean, _ = metric.compute()
    return 1000 * float(mean)


def inception_score(logits: torch.Tensor) -> float:
    """Inception score (Salimans et al. 2016), mean of ten parts (fewer for fewer than ten images)."""
    from torchmetrics.image.inception import InceptionScore

    with _quiet_and_seeded():
        metric = InceptionScore(feature=_Given(logits.shape[1]), splits=min(10, len(logits)))
        metric.update(logits)
        mean, _ = metric.compute()
    return float(mean)


@contextmanager
def _quiet_and_seeded() -> Iterator[None]:
    """Without torchmetrics' remarks on memory, and with the same random subsets every time."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        yield
