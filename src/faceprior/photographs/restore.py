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
    """Sample faces, of one photograph or of many, in batches; a face that the method refuses fails alone.

    Args:
        pipeline: prior and corrector.
        conditions: any number of them.
        options: the method, the seed, the samples N of each face, and how many go through the networks together.
        on_step: see `OnFacesStep`; what it raises stops the work.
        on_notice: called with a sentence for the user when a batch does not fit into the memory.

    Returns:
        For each condition its samples, or why there are none.

    Raises:
        CancelledError: `on_step` raised it.
    """

    def sampled(batch: Sequence[Condition], first: int) -> list[Samples | FacePriorError]:
        def stepped(step: Step, x_prev: torch.Tensor, x0: torch.Tensor, rows: range) -> torch.Tensor:
            if on_step is not None:
                on_step(step, x0, [first + row // options.samples for row in rows])
            return x_prev

        generators = [face_generator(options.seed, face.index) for face in batch]
        faces = [face.low_resolution for face in batch]
        how = (options.samples, options.preset, options.batch_size)
        try:
            restored = pipeline.restore(faces, generators, *how, stepped, on_notice=on_notice)
            return [face.toned(own) for face, own in zip(batch, restored, strict=True)]
        except CancelledError:
            raise
        except FacePriorError as error:
            if len(batch) == 1:
                return [error]
            return [own for row, face in enumerate(batch) for own in sampled([face], first + row)]

    at_once = faces_at_once(pipeline, options)
    starts = range(0, len(conditions), at_once)
    return [own for first in starts for own in sampled(conditions[first : first + at_once], first)]


def faces_at_once(pipeline: FacePriorPipeline, options: RestoreOptions) -> int:
    """Return how many faces fill a batch."""
    return max(1, pipeline.batch_size(options.preset, options.batch_size) // options.samples)


def doubts_of(
    pipeline: FacePriorPipeline, faces: Sequence[Condition], samples: Sequence[Samples | FacePriorError]
) -> list[torch.Tensor | None]:
    """Half-width of a 90 % interval around the first sample of each face, (R, R); None where it is not known."""
    known = [
        (face.low_resolution, own.images)
        for face, own in zip(faces, samples, strict=True)
        if isinstance(own, Samples)
    ]
    doubt = pipeline.doubt(*zip(*known, strict=True)) if known else None
    widths = iter(() if doubt is None else doubt)
    return [next(widths, None) if isinstance(own, Samples) else None for own in samples]
