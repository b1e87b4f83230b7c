"""Conditions through the networks, of any number of photographs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from faceprior.errors import CancelledError, FacePriorError
from faceprior.images import Tone
from faceprior.photographs.options import RestoreOptions
from faceprior.pipeline.face_prior import FacePriorPipeline, Samples
from faceprior.sampling import Step, face_generator

OnFacesStep = Callable[[Step, torch.Tensor, Sequence[int]], object]
"""Called after a step with the step, the corrected x0 (B, 3, R, R) in [-1, 1], and for each of the B rows the
position of its face among those that were asked for."""


@dataclass(frozen=True, eq=False)
class Condition:
    """All that the networks see of a face.

    Attributes:
        low_resolution: (3, n, n) in [-1, 1].
        index: its number in its photograph, from 0; its noise follows from that and from the seed.
        tone: of the photograph. A face that keeps to it, grey or sepia, does so restored; others have their colours.
    """

    low_resolution: torch.Tensor
    index: int = 0
    tone: Tone | None = None

    def toned(self, restored: Samples) -> Samples:
        """Return restorations, sRGB, in this one's tone."""
        if self.tone is None or not self.tone.holds(self.low_resolution):
            return restored
        return Samples(self.tone(restored.images), self.tone(restored.mean[None])[0])


def restore(
    pipeline: FacePriorPipeline,
    conditions: Sequence[Condition],
    options: RestoreOptions = RestoreOptions(),
    on_step: OnFacesStep | None = None,
    on_notice: Callable[[str], object] = lambda _text: None,
) -> list[Samples | FacePriorError]:
    """Sample faces, of one photograph or of many; see `BatchSampler`.

    Returns:
        For each condition its samples, or why there are none.

    Raises:
        CancelledError: `on_step` raised it.
    """
    return BatchSampler(pipeline, options, on_step, on_notice)(conditions)


def doubts_of(
    pipeline: FacePriorPipeline, faces: Sequence[Condition], samples: Sequence[Samples | FacePriorError]
) -> list[torch.Tensor | None]:
    """Half-width of a 90 % interval around the first sample of each face, (R, R); None where it is not known."""
    known = [
        (face.low_resolution, own.images) for face, own in zip(faces, samples, strict=True) if isinstance(own, Samples)
    ]
    doubt = pipeline.doubt(*zip(*known, strict=True)) if known else None
    widths = iter(() if doubt is None else doubt)
    return [next(widths, None) if isinstance(own, Samples) else None for own in samples]


class BatchSampler:
    """Samples faces in batches; a face that the method refuses fails alone.

    Args:
        pipeline: prior and corrector.
        options: the method, the seed, the samples N of each face, and how many go through the networks together.
        on_step: see `OnFacesStep`; what it raises stops the work.
        on_notice: called with a sentence for the user when a batch does not fit into the memory.
    """

    def __init__(
        self,
        pipeline: FacePriorPipeline,
        options: RestoreOptions,
        on_step: OnFacesStep | None = None,
        on_notice: Callable[[str], object] = lambda _text: None,
    ) -> None:
        self._pipeline, self._options = pipeline, options
        self._on_step, self._on_notice = on_step, on_notice

    @property
    def faces_at_once(self) -> int:
        """Faces that fill a batch."""
        options = self._options
        return max(1, self._pipeline.batch_size(options.preset, options.batch_size) // options.samples)

    def __call__(self, faces: Sequence[Condition]) -> list[Samples | FacePriorError]:
        """Sample faces, any number of them.

        Returns:
            For each face its samples, or why there are none.
        """
        results: list[Samples | FacePriorError] = []
        alone = 0  # so many faces are tried one by one: one of them is refused by the method
        while len(results) < len(faces):
            batch = faces[len(results) :][: 1 if alone else self.faces_at_once]
            sampled = self._try(batch, len(results))
            if isinstance(sampled, list):
                results += sampled
            elif len(batch) > 1:
                alone = len(batch)
                continue
            else:
                results.append(sampled)
            alone = max(0, alone - len(batch))
        return results

    def _try(self, batch: Sequence[Condition], first: int) -> list[Samples | FacePriorError] | FacePriorError:
        options = self._options

        def stepped(step: Step, x_prev: torch.Tensor, x0: torch.Tensor, rows: range) -> torch.Tensor:
            if self._on_step is not None:
                self._on_step(step, x0, [first + row // options.samples for row in rows])
            return x_prev

        generators = [face_generator(options.seed, face.index) for face in batch]
        inputs = [face.low_resolution for face in batch]
        try:
            restored = self._pipeline.restore(
                inputs,
                generators,
                options.samples,
                options.preset,
                options.batch_size,
                stepped,
                on_notice=self._on_notice,
            )
            return [face.toned(own) for face, own in zip(batch, restored, strict=True)]
        except CancelledError:
            raise
        except FacePriorError as error:
            return error
