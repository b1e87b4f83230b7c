"""What is measured of the restorations of a face; figures of whole sets are in `faceprior.benchmark.sets`.

Everything is measured on 8-bit pictures, as they are kept, so that a figure can be added later. What needs weights or
torchvision is no dependency: without it the figure is missing, and `Meters.missing` says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F

from faceprior.errors import FacePriorError, OptionError, one_line
from faceprior.evaluation.arcface import ARCFACE_SAME_PERSON, ArcFaceEmbedder
from faceprior.evaluation.identity import SAME_PERSON, Embedder, FaceEmbedder
from faceprior.evaluation.metrics import EXACT, lr_consistency, psnr, spread, ssim
from faceprior.evaluation.naturalness import NIQE_SIDE, Brisque, Niqe
from faceprior.evaluation.regions import REGIONS, face_regions
from faceprior.evaluation.texture import OCTAVES, grid_excess, texture_power
from faceprior.images import read_image, to_tensor
from faceprior.priors.card import Landmarks

INSTALL = "pip install pyiqa 'torchmetrics[image]'"


@dataclass(frozen=True)
class FaceSamples:
    """Restorations of one face as 8-bit pictures; all tensors in [-1, 1].

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


Meter = Callable[[FaceSamples], torch.Tensor | float]
"""A figure of each image, (N,), or one that they have together."""


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


Opener = Callable[[MeterOptions], Meter]
"""Makes ready to measure a figure; raises FacePriorError if it cannot be measured here."""


@contextmanager
def missing_if_it_fails(text: str) -> Iterator[None]:
    """Raise FacePriorError with a text, and the reason in place of its {reason}, for whatever a library raises."""
    try:
        yield
    except Exception as error:
        raise FacePriorError(text.format(reason=one_line(error))) from error


def _ready(meter: Meter) -> Opener:
    return lambda _: meter


def _alone(measure: Callable[[torch.Tensor], torch.Tensor]) -> Meter:
    return lambda face: measure(face.images)


def _against_truth(compare: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Meter:
    def meter(face: FaceSamples) -> torch.Tensor:
        assert face.truth is not None  # noqa: S101 - Meters asks for it
        return compare(face.images, face.truth.expand_as(face.images)).clamp(max=EXACT)

    return meter


def _texture(octave: int) -> Meter:
    return _against_truth(lambda images, truth: texture_power(images, truth)[:, octave])


def _in_region(name: str, options: MeterOptions) -> Meter:
    mask = face_regions(options.template, options.resolution)[name]
    return _against_truth(lambda a, b: psnr(a[..., mask, None], b[..., mask, None]))


def _lr_consistency(face: FaceSamples) -> torch.Tensor:
    inputs = face.low_resolution.expand(len(face.images), -1, -1, -1)
    return lr_consistency(face.images, inputs).clamp(max=EXACT)


def _identity(face: FaceSamples) -> torch.Tensor:
    assert face.embeddings is not None  # noqa: S101 - Meters embeds where there is an embedder
    assert face.true_embedding is not None  # noqa: S101
    return F.cosine_similarity(face.embeddings, face.true_embedding)


def _same_person(options: MeterOptions) -> Meter:
    return lambda face: (_identity(face) >= options.same_person).double()


def _lpips(net: Literal["alex", "vgg"], options: MeterOptions) -> Meter:
    """LPIPS (Zhang et al. 2018) of torchmetrics: its linear heads on torchvision's ImageNet weights."""
    with missing_if_it_fails(f"LPIPS needs torchvision, which cannot be imported: {INSTALL}"):
        import torchvision  # noqa: F401 - torchmetrics wants it
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    with missing_if_it_fails(
        f"LPIPS: the ImageNet weights of {net} cannot be loaded ({{reason}}); put torchvision's file into"
        " $TORCH_HOME/hub/checkpoints"
    ):
        network = LearnedPerceptualImagePatchSimilarity(net_type=net).net.to(options.device)
    return _against_truth(lambda a, b: network(a.to(options.device), b.to(options.device)).flatten().cpu())


def _musiq(options: MeterOptions) -> Meter:
    with missing_if_it_fails(f"MUSIQ needs pyiqa, which cannot be imported: {INSTALL}"):
        import pyiqa
    with missing_if_it_fails("MUSIQ: pyiqa cannot load its weights ({reason})"):
        network = pyiqa.create_metric("musiq", device=options.device)
    return _alone(lambda images: network((images.to(options.device) + 1) / 2).flatten())


def _niqe(options: MeterOptions) -> Meter:
    if options.resolution < NIQE_SIDE:
        raise FacePriorError(f"NIQE needs {NIQE_SIDE} pixels a side; these faces have {options.resolution}")
    return _alone(Niqe())


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
        open: None for sets and costs.
        needs_truth: whether the sharp face must be known.
        needs_identity: whether it compares identity embeddings.
        least_side: of the faces; of smaller ones there is no such figure.
    """

    name: str
    title: str
    kind: Literal["image", "samples", "set", "cost"]
    better: Literal["higher", "lower", "zero", ""]
    digits: int = 3
    open: Opener | None = None
    needs_truth: bool = False
    needs_identity: bool = False
    least_side: int = 0


def _metrics() -> Iterator[Metric]:
    of_truth = partial(Metric, kind="image", needs_truth=True)
    yield of_truth("psnr", "PSNR, dB", better="higher", digits=2, open=_ready(_against_truth(psnr)))
    yield of_truth("ssim", "SSIM", better="higher", open=_ready(_against_truth(ssim)))
    yield of_truth("lpips_alex", "LPIPS (alex)", better="lower", open=partial(_lpips, "alex"))
    yield of_truth("lpips_vgg", "LPIPS (vgg)", better="lower", open=partial(_lpips, "vgg"))
    for region in REGIONS:
        title = f"PSNR, {region}, dB"
        yield of_truth(f"psnr_{region}", title, better="higher", digits=2, open=partial(_in_region, region))
    for octave, low in enumerate(OCTAVES):
        title, texture = f"texture {low}–{2 * low}, dB", _ready(_texture(octave))
        yield of_truth(f"texture_{low}", title, better="zero", digits=1, open=texture, least_side=4 * low)
    yield Metric("grid", "2-pixel grid", "image", "lower", 2, _ready(_alone(grid_excess)))
    yield Metric("niqe", "NIQE", "image", "lower", 2, _niqe)
    yield Metric("brisque", "BRISQUE", "image", "lower", 1, lambda _: _alone(Brisque()))
    yield Metric("musiq", "MUSIQ", "image", "higher", 1, _musiq)
    yield of_truth("identity", "identity", better="higher", open=_ready(_identity), needs_identity=True)
    yield of_truth("same_person", "same person", better="higher", digits=2, open=_same_person, needs_identity=True)
    yield Metric("lr_consistency", "LR consistency, dB", "image", "higher", 1, _ready(_lr_consistency))
    yield Metric("spread", "spread", "samples", "", 3, _ready(_alone(lambda images: spread(images).mean())))
    yield Metric("fid", "FID", "set", "lower", 1)
    yield Metric("kid", "KID × 1000", "set", "lower", 2)
    yield Metric("auc", "told from real, AUC", "set", "lower")
    yield Metric("frechet", "Fréchet (identity)", "set", "lower", needs_identity=True)
    yield Metric("seconds", "s/face", "cost", "lower")
    yield Metric("nfe", "NFE", "cost", "lower", 0)
    yield Metric("peak_memory_mb", "peak memory, MB", "cost", "lower", 0)


METRICS = {metric.name: metric for metric in _metrics()}
"""Every figure, in the order of tables."""

COSTS = tuple(name for name, metric in METRICS.items() if metric.kind == "cost")
PER_ROW = tuple(name for name, metric in METRICS.items() if metric.kind in ("image", "samples"))
"""Figures that stand in the rows of the table; those of sets are computed for the summary."""


class Meters:
    """The figures that can be measured here, all of them or those that are wanted by name.

    Attributes:
        names: of what is measured in rows, in the order of tables.
        missing: why each of the others that were wanted cannot be.
    """

    def __init__(self, wanted: Sequence[str], options: MeterOptions) -> None:
        self.options = options
        self.missing: dict[str, str] = {}
        self._embedder: Embedder | None = None
        self._embedded: dict[Path, torch.Tensor | None] = {}
        self._meters: dict[str, Meter] = {}
        chosen = [METRICS[name] for name in METRICS if not wanted or name in wanted]
        of_identity = [metric.name for metric in chosen if metric.needs_identity]
        if of_identity:
            try:
                self._embedder = options.embedder()
            except FacePriorError as error:
                self.missing.update(dict.fromkeys(of_identity, str(error)))
        for metric in chosen:
            if metric.open is None or metric.name in self.missing or options.resolution < metric.least_side:
                continue
            try:
                self._meters[metric.name] = metric.open(options)
            except FacePriorError as error:
                self.missing[metric.name] = str(error)
        self.names = tuple(self._meters)

    @property
    def embeds(self) -> bool:
        """Whether identity is measured."""
        return self._embedder is not None

    def embed(self, images: torch.Tensor) -> torch.Tensor | None:
        """Embed (B, 3, R, R); None if identity is not measured."""
        return None if self._embedder is None else self._embedder(images, self.options.template)

    def embed_file(self, path: Path) -> torch.Tensor | None:
        """Embed a kept picture, once: (1, D); None if identity is not measured."""
        if path not in self._embedded:
            self._embedded[path] = self.embed(to_tensor(read_image(path))[None])
        return self._embedded[path]

    @torch.no_grad()
    def __call__(self, face: FaceSamples) -> list[dict[str, float]]:
        """Return the figures of each of the N images, those that the face allows."""
        rows: list[dict[str, float]] = [{} for _ in face.images]
        for name, meter in self._meters.items():
            metric = METRICS[name]
            if (metric.needs_truth and face.truth is None) or (metric.kind == "samples" and len(face.images) < 2):
                continue
            values = torch.as_tensor(meter(face), dtype=torch.float64).expand(len(rows))
            for row, value in zip(rows, values.tolist(), strict=True):
                row[name] = value
        return rows
