"""How good a prior and a corrector are: held-out faces, degraded, restored and compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from faceprior.degradations import make_input
from faceprior.errors import OptionError
from faceprior.evaluation.figures import Case, Estimate, Evaluation, FaceFigures
from faceprior.evaluation.identity import Embedder, identity
from faceprior.evaluation.metrics import EXACT, lr_consistency, psnr, ssim
from faceprior.images import resize
from faceprior.methods import Preset
from faceprior.pipeline.face_prior import FacePriorPipeline
from faceprior.priors.card import Landmarks


class Damage(NamedTuple):
    """How inputs are made.

    Attributes:
        degradation: its name, see `faceprior.degradations.make_input`.
        scale: R/n of the inputs.
    """

    degradation: str
    scale: float

    def apply(self, face: torch.Tensor, seed: int, landmarks: Landmarks = ()) -> torch.Tensor:
        """Return the input made from a sharp face, (3, R, R) → (3, n, n), both in [-1, 1]."""
        side = round(face.shape[-1] / self.scale)
        return make_input(face, self.degradation, side, torch.Generator().manual_seed(seed), landmarks)


def evaluate_held_out(
    pipeline: FacePriorPipeline,
    faces: torch.Tensor,
    damages: Sequence[Damage],
    preset: Preset,
    *,
    samples: int = 8,
    seed: int = 0,
    batch_size: int = 8,
    without_corrector: bool = False,
    embedder: Embedder | None = None,
    regions: Mapping[str, torch.Tensor] | None = None,
    on_faces: Callable[[int], object] = lambda _: None,
) -> Evaluation:
    """Measure bicubic enlargement, one sample and, of several, their mean for every face and damage.

    Networks see whole batches, on a CPU too; so the last bits of a result depend on `batch_size`.

    Args:
        pipeline: prior and corrector.
        faces: sharp faces, (B, 3, R, R) in [-1, 1], aligned as the prior's card says.
        damages: how inputs are made.
        preset: how they are restored.
        samples: samples of each face.
        seed: face i is damaged and restored with seed + i.
        batch_size: samples that go through the networks together.
        without_corrector: restore a second time without the corrector.
        embedder: measures identity; None leaves it out.
        regions: parts of a face whose PSNR is measured too: boolean masks, (R, R), by name.
        on_faces: called with the number of faces that have just been restored.

    Raises:
        OptionError: the corrector is to be left out where there is none, or identity is to be measured and the
            prior's card has no template.
    """
    if embedder is not None and not pipeline.prior.card.template:
        raise OptionError("identity needs the prior's alignment, and its card has no template")
    pipelines = {pipeline.corrector is not None: pipeline}
    if without_corrector:
        if pipeline.corrector is None:
            raise OptionError("there is no corrector to leave out; choose one with --corrector")
        pipelines[False] = pipeline.without_corrector()
    evaluation = Evaluation()
    measure = _Measure(evaluation, faces, pipeline, embedder, regions or {})
    at_once = max(1, batch_size // samples)
    for damage in damages:
        for first in range(0, len(faces), at_once):
            chosen = range(first, min(first + at_once, len(faces)))
            inputs = torch.stack([damage.apply(faces[i], seed + i) for i in chosen])
            enlarged = resize(inputs, pipeline.resolution).clamp(-1, 1)
            measure(chosen, Case(*damage, "bicubic"), enlarged, inputs, None)
            for corrector, used in pipelines.items():
                generators = [torch.Generator().manual_seed(seed + i) for i in chosen]
                started = time.perf_counter()
                images = used.restore(  # (b, N, 3, R, R)
                    list(inputs), generators, samples, preset, batch_size, whole_batches=True
                )
                seconds = (time.perf_counter() - started) / len(chosen)
                estimates: list[tuple[Estimate, torch.Tensor, float]] = [("sample", images[:, 0], seconds / samples)]
                if samples > 1:
                    estimates.append(("mean", images.mean(1), seconds))
                for estimate, results, taken in estimates:
                    measure(chosen, Case(*damage, estimate, corrector), results, inputs, taken)
                on_faces(len(chosen))
    return evaluation


class _Measure:
    """Adds rows and embeddings to an evaluation."""

    def __init__(
        self,
        evaluation: Evaluation,
        faces: torch.Tensor,
        pipeline: FacePriorPipeline,
        embedder: Embedder | None,
        regions: Mapping[str, torch.Tensor],
    ) -> None:
        self.evaluation, self.faces, self.embedder, self.regions = evaluation, faces, embedder, regions
        self.template = pipeline.prior.card.template
        if embedder is not None:
            evaluation.true_embeddings = embedder(faces, self.template)

    def __call__(
        self, chosen: range, case: Case, results: torch.Tensor, inputs: torch.Tensor, seconds: float | None
    ) -> None:
        truth = self.faces[chosen.start : chosen.stop]
        similarities: list[float | None] = [None] * len(chosen)
        true_embeddings = self.evaluation.true_embeddings
        if self.embedder is not None and true_embeddings is not None:
            embeddings = self.embedder(results, self.template)
            similarities = list(identity(embeddings, true_embeddings[chosen.start : chosen.stop]).tolist())
            earlier = self.evaluation.embeddings.get(case)
            self.evaluation.embeddings[case] = embeddings if earlier is None else torch.cat([earlier, embeddings])
        inside = {
            name: psnr(results[..., mask, None], truth[..., mask, None]).clamp(max=EXACT).tolist()
            for name, mask in self.regions.items()
        }
        columns = zip(
            chosen,
            psnr(results, truth).clamp(max=EXACT).tolist(),
            ssim(results, truth).tolist(),
            lr_consistency(results, inputs).clamp(max=EXACT).tolist(),
            similarities,
            strict=True,
        )
        self.evaluation.rows += [
            FaceFigures(
                face,
                case,
                fidelity,
                structure,
                agreement,
                similarity,
                seconds,
                {name: values[place] for name, values in inside.items()},
            )
            for place, (face, fidelity, structure, agreement, similarity) in enumerate(columns)
        ]
