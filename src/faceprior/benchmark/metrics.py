"""What is measured of a restoration: of each image, of the restorations of one face, and of whole sets.

Everything is measured on 8-bit pictures, as they are kept, so that a figure can be added later. What needs weights or
torchvision is no dependency: without it the figure is missing, and `Meters.missing` says why.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from faceprior.errors import FacePriorError, OptionError
from faceprior.evaluation.arcface import ARCFACE_SAME_PERSON, ArcFaceEmbedder
from faceprior.evaluation.frechet import frechet_distance
from faceprior.evaluation.identity import SAME_PERSON, Embedder, FaceEmbedder, identity
from faceprior.evaluation.metrics import EXACT, diversity, lr_consistency, ms_ssim, psnr, spread, ssim
from faceprior.evaluation.naturalness import NIQE_SIDE, Brisque, Niqe
from faceprior.evaluation.regions import REGIONS, face_regions
from faceprior.evaluation.texture import OCTAVES, grid_excess, texture_power
from faceprior.images import to_uint8
from faceprior.priors.card import Landmarks

INSTALL = "pip install pyiqa 'torchmetrics[image]'"

Kind = Literal["image", "samples", "set", "cost"]
Better = Literal["higher", "lower", "zero", ""]


@dataclass(frozen=True)
class Metric:
    """What a figure is.

    Attributes:
        name: of the column.
        title: of tables, with the unit.
        kind: "image" (of each restoration), "samples" (of the restorations of one face), "set" (of all of them), or
            "cost".
        better: which way is better, "zero" is nearer to 0; "" where neither is.
        digits: after the point, in tables.
        needs_truth: whether the sharp face must be known.
        needs_identity: whether it compares identity embeddings.
    """

    name: str
    title: str
    kind: Kind
    better: Better
    digits: int = 3
    needs_truth: bool = False
    needs_identity: bool = False


METRICS = {
    metric.name: metric
    for metric in (
        Metric("psnr", "PSNR, dB", "image", "higher", 2, needs_truth=True),
        Metric("ssim", "SSIM", "image", "higher", needs_truth=True),
        Metric("ms_ssim", "MS-SSIM", "image", "higher", needs_truth=True),
        Metric("lpips_alex", "LPIPS (alex)", "image", "lower", needs_truth=True),
        Metric("lpips_vgg", "LPIPS (vgg)", "image", "lower", needs_truth=True),
        *(Metric(f"psnr_{name}", f"PSNR, {name}, dB", "image", "higher", 2, needs_truth=True) for name in REGIONS),
        *(
            Metric(f"texture_{low}", f"texture {low}–{2 * low}, dB", "image", "zero", 1, needs_truth=True)
            for low in OCTAVES
        ),
        Metric("grid", "2-pixel grid", "image", "lower", 2),
        Metric("niqe", "NIQE", "image", "lower", 2),
        Metric("brisque", "BRISQUE", "image", "lower", 1),
        Metric("musiq", "MUSIQ", "image", "higher", 1),
        Metric("identity", "identity", "image", "higher", needs_truth=True, needs_identity=True),
        Metric("same_person", "same person", "image", "higher", 2, needs_truth=True, needs_identity=True),
        Metric("lr_consistency", "LR consistency, dB", "image", "higher", 1),
        Metric("diversity", "diversity", "samples", ""),
        Metric("diversity_lpips", "diversity, LPIPS (alex)", "samples", ""),
        Metric("spread", "spread", "samples", ""),
        Metric("fid", "FID", "set", "lower", 1),
        Metric("kid", "KID × 1000", "set", "lower", 2),
        Metric("inception_score", "IS", "set", "higher", 2),
        Metric("auc", "told from real, AUC", "set", "lower"),
        Metric("frechet", "Fréchet (identity)", "set", "lower", needs_identity=True),
        Metric("seconds", "s/face", "cost", "lower", 3),
        Metric("nfe", "NFE", "cost", "lower", 0),
        Metric("peak_memory_mb", "peak memory, MB", "cost", "lower", 0),
    )
}
"""Every figure, in the order of tables."""

COSTS = tuple(name for name, metric in METRICS.items() if metric.kind == "cost")
PER_ROW = tuple(name for name, metric in METRICS.items() if metric.kind in ("image", "samples"))
"""Figures that stand in the rows of the table; those of sets are computed for the summary."""


@dataclass(frozen=True)
class Measured:
    """One face and its restorations as 8-bit pictures; all tensors in [-1, 1].

    Attributes:
        images: (N, 3, R, R).
        truth: (3, R, R); None if it is not known.
        low_resolution: (3, n, n).
        embeddings: of the images, (N, D); None if identity is not measured.
        true_embedding: (1, D); None if there is no truth.
    """

    images: torch.Tensor
    truth: torch.Tensor | None
    low_resolution: torch.Tensor
    embeddings: torch.Tensor | None = None
    true_embedding: torch.Tensor | None = None


Meter = Callable[[Measured], Sequence[float]]
"""A figure of each image, N of them."""


@dataclass(frozen=True)
class MeterOptions:
    """What metrics depend on.

    Attributes:
        template: where the landmarks of the faces stand, as fractions of the side; empty if unknown.
        resolution: side R of the faces.
        device: where networks compute.
        arcface: checkpoint that measures identity; "" is dlib's network.
        identity_threshold: of "same_person"; 0 is the network's own.
    """

    template: Landmarks
    resolution: int
    device: torch.device
    arcface: str = ""
    identity_threshold: float = 0.0

    @property
    def identity_network(self) -> str:
        """What measures identity, for rows and reports."""
        return f"ArcFace ({Path(self.arcface).name})" if self.arcface else "dlib"

    @property
    def same_person(self) -> float:
        """Cosine similarity from which two embeddings count as one person."""
        return self.identity_threshold or (ARCFACE_SAME_PERSON if self.arcface else SAME_PERSON)

    def embedder(self) -> Embedder:
        """Load the network; raises FacePriorError if it cannot be."""
        if not self.template:
            raise OptionError("identity needs the prior's alignment, and its card has no template")
        return ArcFaceEmbedder(Path(self.arcface), self.device) if self.arcface else FaceEmbedder()


class Meters:
    """The figures that can be measured here.

    Args:
        wanted: names of metrics; empty takes all.
        options: what they depend on.

    Attributes:
        names: of what is measured in rows, in the order of tables.
        missing: why each of the others that were wanted cannot be.

    Raises:
        OptionError: a metric is unknown.
    """

    def __init__(self, wanted: Sequence[str], options: MeterOptions) -> None:
        check_names(wanted)
        self.options = options
        self.missing: dict[str, str] = {}
        self._embedder: Embedder | None = None
        self._meters: dict[str, Meter] = {}
        chosen = [name for name in METRICS if (not wanted or name in wanted) and _fits(name, options.resolution)]
        self._open_embedder([name for name in chosen if METRICS[name].needs_identity])
        for name in chosen:
            if name in _OPENERS and name not in self.missing:
                self._open(name)
        self.names = tuple(self._meters)

    def _open_embedder(self, names: Sequence[str]) -> None:
        if names:
            try:
                self._embedder = self.options.embedder()
            except FacePriorError as error:
                self.missing.update(dict.fromkeys(names, str(error)))

    def _open(self, name: str) -> None:
        try:
            self._meters[name] = _OPENERS[name](self.options)
        except FacePriorError as error:
            self.missing[name] = str(error)

    @property
    def embeds(self) -> bool:
        """Whether identity is measured."""
        return self._embedder is not None

    def embed(self, images: torch.Tensor) -> torch.Tensor | None:
        """Embed (B, 3, R, R); None if identity is not measured."""
        return None if self._embedder is None else self._embedder(images, self.options.template)

    @torch.no_grad()
    def __call__(self, face: Measured) -> list[dict[str, float]]:
        """Return the figures of each of the N images, those that the face allows."""
        rows: list[dict[str, float]] = [{} for _ in face.images]
        for name, meter in self._meters.items():
            metric = METRICS[name]
            if (metric.needs_truth and face.truth is None) or (metric.kind == "samples" and len(face.images) < 2):
                continue
            for row, value in zip(rows, meter(face), strict=True):
                row[name] = float(value)
        return rows


def _fits(name: str, resolution: int) -> bool:
    """Whether faces of a side have the octave that a figure measures."""
    stem, _, low = name.partition("texture_")
    return bool(stem) or 4 * int(low) <= resolution


def check_names(wanted: Sequence[str]) -> None:
    """Raise OptionError for a metric that does not exist."""
    if unknown := sorted(set(wanted) - set(METRICS)):
        raise OptionError(f"metric {', '.join(unknown)} is not known; choose {', '.join(METRICS)}")


def _against_truth(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Meter:
    def meter(face: Measured) -> Sequence[float]:
        assert face.truth is not None  # noqa: S101 - Meters asks for it
        return function(face.images, face.truth.expand_as(face.images)).clamp(max=EXACT).tolist()

    return meter


def _lr_consistency(face: Measured) -> Sequence[float]:
    inputs = face.low_resolution.expand(len(face.images), -1, -1, -1)
    return lr_consistency(face.images, inputs).clamp(max=EXACT).tolist()


def _identity(face: Measured) -> Sequence[float]:
    assert face.embeddings is not None  # noqa: S101 - Meters embeds where there is an embedder
    assert face.true_embedding is not None  # noqa: S101
    return identity(face.embeddings, face.true_embedding.expand_as(face.embeddings)).tolist()


def _same_person(threshold: float, face: Measured) -> Sequence[float]:
    return [float(value >= threshold) for value in _identity(face)]


def lpips_network(net: Literal["alex", "vgg"]) -> nn.Module:
    """Load LPIPS (Zhang et al. 2018) of torchmetrics: its linear heads on torchvision's ImageNet weights.

    Raises:
        FacePriorError: torchvision or its weights are missing.
    """
    try:
        import torchvision  # noqa: F401 - torchmetrics wants it
    except (ImportError, RuntimeError) as error:  # RuntimeError: it was built for another torch
        raise FacePriorError(f"LPIPS needs torchvision, which cannot be imported: {INSTALL}") from error
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    try:
        return LearnedPerceptualImagePatchSimilarity(net_type=net).net
    except (OSError, RuntimeError, ModuleNotFoundError) as error:
        raise FacePriorError(
            f"LPIPS: the ImageNet weights of {net} cannot be loaded ({_reason(error)}); put torchvision's file into"
            " $TORCH_HOME/hub/checkpoints"
        ) from error


def _lpips(net: Literal["alex", "vgg"], options: MeterOptions) -> Meter:
    network = lpips_network(net).to(options.device)
    return _against_truth(lambda a, b: network(a.to(options.device), b.to(options.device)).flatten().cpu())


def _diversity_lpips(options: MeterOptions) -> Meter:
    network = lpips_network("alex").to(options.device)

    def meter(face: Measured) -> Sequence[float]:
        pairs = torch.combinations(torch.arange(len(face.images)))
        images = face.images.to(options.device)
        value = float(network(images[pairs[:, 0]], images[pairs[:, 1]]).mean())
        return [value] * len(images)

    return meter


def _musiq(options: MeterOptions) -> Meter:
    try:
        import pyiqa
    except (ImportError, RuntimeError) as error:
        raise FacePriorError(f"MUSIQ needs pyiqa, which cannot be imported: {INSTALL}") from error
    try:
        network = pyiqa.create_metric("musiq", device=options.device)
    except Exception as error:  # whatever its download raises
        raise FacePriorError(f"MUSIQ: pyiqa cannot load its weights ({_reason(error)})") from error
    return lambda face: network((face.images.to(options.device) + 1) / 2).flatten().tolist()


def _niqe(options: MeterOptions) -> Meter:
    if options.resolution < NIQE_SIDE:
        raise FacePriorError(f"NIQE needs {NIQE_SIDE} pixels a side; these faces have {options.resolution}")
    measure = Niqe()
    return lambda face: measure(face.images).tolist()


def _brisque(_: MeterOptions) -> Meter:
    measure = Brisque()
    return lambda face: measure(face.images).tolist()


def _in_region(name: str, options: MeterOptions) -> Meter:
    mask = face_regions(options.template, options.resolution)[name]
    return _against_truth(lambda a, b: psnr(a[..., mask, None], b[..., mask, None]))


def _constant(meter: Meter) -> Callable[[MeterOptions], Meter]:
    return lambda _: meter


def _texture(octave: int, face: Measured) -> Sequence[float]:
    assert face.truth is not None  # noqa: S101 - Meters asks for it
    return texture_power(face.images, face.truth[None])[:, octave].tolist()


_OPENERS: Mapping[str, Callable[[MeterOptions], Meter]] = {
    "psnr": lambda _: _against_truth(psnr),
    "ssim": lambda _: _against_truth(ssim),
    "ms_ssim": lambda _: _against_truth(ms_ssim),
    "lpips_alex": partial(_lpips, "alex"),
    "lpips_vgg": partial(_lpips, "vgg"),
    **{f"psnr_{name}": partial(_in_region, name) for name in REGIONS},
    **{f"texture_{low}": _constant(partial(_texture, octave)) for octave, low in enumerate(OCTAVES)},
    "grid": lambda _: lambda face: grid_excess(face.images).tolist(),
    "niqe": _niqe,
    "brisque": _brisque,
    "musiq": _musiq,
    "identity": lambda _: _identity,
    "same_person": lambda options: partial(_same_person, options.same_person),
    "lr_consistency": lambda _: _lr_consistency,
    "diversity": lambda _: lambda face: [diversity(face.images)] * len(face.images),
    "diversity_lpips": _diversity_lpips,
    "spread": lambda _: lambda face: [float(spread(face.images).mean())] * len(face.images),
}


class InceptionFeatures:
    """torch-fidelity's Inception-v3 (the weights of the original FID), as torchmetrics wraps it.

    Args:
        device: where to compute.

    Raises:
        FacePriorError: torch-fidelity or its weights are missing.
    """

    def __init__(self, device: torch.device) -> None:
        try:
            import torch_fidelity  # noqa: F401 - torchmetrics wants it
        except (ImportError, RuntimeError) as error:
            raise FacePriorError(
                f"FID, KID and IS need torch-fidelity, which cannot be imported: {INSTALL}"
            ) from error
        from torchmetrics.image.fid import NoTrainInceptionV3

        try:
            network = NoTrainInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"])
        except Exception as error:  # whatever its download raises
            raise FacePriorError(
                f"FID, KID and IS: Inception's weights cannot be loaded ({_reason(error)}); put torch-fidelity's file"
                " into $TORCH_HOME/hub/checkpoints"
            ) from error
        self._network, self._device = network.to(device), device

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> Features:
        """Return the features of (B, 3, R, R) in [-1, 1]."""
        # the network's own forward flattens what it returns; this one gives both layers
        pooled, logits = self._network._torch_fidelity_forward(to_uint8(images).to(self._device))  # noqa: SLF001
        return Features(pooled.flatten(1).cpu(), logits.flatten(1).cpu())


@dataclass(frozen=True)
class Features:
    """What set metrics are computed from.

    Attributes:
        pooled: (B, 2048).
        logits: (B, 1008).
    """

    pooled: torch.Tensor
    logits: torch.Tensor


class _Given(nn.Module):
    """Stands where torchmetrics wants a network: what comes in are features already."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.num_features = length

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def fid(features: torch.Tensor, reference: torch.Tensor) -> float:
    """Fréchet inception distance (Heusel et al. 2017) between (N, D) and (M, D) features; see `frechet_distance`."""
    return frechet_distance(features, reference)


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


def _reason(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
