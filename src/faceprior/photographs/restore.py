"""Conditions through the networks, of any number of photographs, in batches that fit into the device's memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from faceprior.errors import CancelledError, DeviceError, FacePriorError
from faceprior.images import Tone
from faceprior.photographs.options import RestoreOptions
from faceprior.pipeline.face_prior import FacePriorPipeline
from faceprior.sampling import Step, face_generator

OnFacesStep = Callable[[Step, torch.Tensor, Sequence[int]], object]
"""Called after a step with the step, the corrected x0 (B, 3, R, R) in [-1, 1], and for each of the B rows the
position of its face among those that were asked for."""

_IMAGES_AT_ONCE = 8
_IMAGES_A_CORE = 2  # at once: cores that are done with a step wait for the others
_FULL = ("out of memory", "can't allocate memory", "not enough memory")


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

    def toned(self, restored: torch.Tensor) -> torch.Tensor:
        """Return restored faces, sRGB in [-1, 1], (N, 3, R, R), in this one's tone."""
        return self.tone(restored) if self.tone is not None and self.tone.holds(self.low_resolution) else restored


def restore(
    pipeline: FacePriorPipeline,
    conditions: Sequence[Condition],
    options: RestoreOptions = RestoreOptions(),
    on_step: OnFacesStep | None = None,
    on_notice: Callable[[str], object] = lambda _text: None,
) -> list[torch.Tensor | FacePriorError]:
    """Sample faces, of one photograph or of many; see `BatchSampler`.

    Returns:
        For each condition its samples, (N, 3, R, R) in [-1, 1], or why there are none.

    Raises:
        CancelledError: `on_step` raised it.
    """
    return BatchSampler(pipeline, options, on_step, on_notice)(conditions)


class BatchSampler:
    """Samples faces; a batch that does not fit into the device's memory is halved, and stays so.

    No face's result depends on its batch-mates, so on a CPU a smaller batch changes nothing but the time.

    Args:
        pipeline: prior and corrector.
        options: the method, the seed, the samples N of each face, and how many go through the networks together at
            first.
        on_step: see `OnFacesStep`; what it raises stops the work.
        on_notice: called with a sentence for the user when the batch is halved.
    """

    def __init__(
        self,
        pipeline: FacePriorPipeline,
        options: RestoreOptions,
        on_step: OnFacesStep | None = None,
        on_notice: Callable[[str], object] = lambda _text: None,
    ) -> None:
        self._pipeline, self._options = pipeline, options
        self._evaluations = pipeline.evaluations(options.preset)
        self._on_step, self._on_notice = on_step, on_notice
        cores = torch.get_num_threads() if pipeline.prior.device.type == "cpu" else 0
        self.batch_size = options.batch_size or max(_IMAGES_AT_ONCE, _IMAGES_A_CORE * cores)

    @property
    def faces_at_once(self) -> int:
        """Faces that fill a batch."""
        return max(1, self.batch_size // self._options.samples)

    def __call__(self, faces: Sequence[Condition]) -> list[torch.Tensor | FacePriorError]:
        """Sample faces, any number of them.

        Returns:
            For each face its samples, (N, 3, R, R) in [-1, 1], or why there are none.
        """
        results: list[torch.Tensor | FacePriorError] = []
        alone = 0  # so many faces are tried one by one: one of them is refused by the method
        while len(results) < len(faces):
            batch = faces[len(results) :][: 1 if alone else self.faces_at_once]
            sampled = self._try(batch, len(results))
            together = min(self.batch_size, len(batch) * self._options.samples)
            if isinstance(sampled, list):
                results += sampled
            elif isinstance(sampled, _OutOfMemoryError) and together > 1:
                self.batch_size = halved(together, self._pipeline.prior.device, self._on_notice)
                continue
            elif len(batch) > 1:
                alone = len(batch)
                continue
            else:
                results.append(sampled)
            alone = max(0, alone - len(batch))
        return results

    def _try(self, batch: Sequence[Condition], first: int) -> list[torch.Tensor | FacePriorError] | FacePriorError:
        rows = [first + position for position in range(len(batch)) for _ in range(self._options.samples)]
        calls = passed = 0

        def stepped(step: Step, x_prev: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
            nonlocal calls, passed
            if self._on_step is not None:
                self._on_step(step, x0, rows[passed : passed + len(x0)])
            calls += 1
            if calls % self._evaluations == 0:  # the pipeline goes on with its next batch
                passed += len(x0)
            return x_prev

        generators = [face_generator(self._options.seed, face.index) for face in batch]
        inputs = [face.low_resolution for face in batch]
        try:
            restored = self._pipeline.restore(
                inputs, generators, self._options.samples, self._options.preset, self.batch_size, stepped
            )
            return [face.toned(own) for face, own in zip(batch, restored, strict=True)]
        except CancelledError:
            raise
        except FacePriorError as error:
            return error
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return _OutOfMemoryError(self._pipeline.prior.device)


class _OutOfMemoryError(DeviceError):
    def __init__(self, device: torch.device) -> None:
        super().__init__(
            f"one face does not fit into the memory of {device}; close other programs, or choose another --device or"
            " --dtype"
        )


def halved(together: int, device: torch.device, on_notice: Callable[[str], object]) -> int:
    """Return half of so many faces as did not fit into a device's memory together, and say so.

    Raises:
        DeviceError: it was one.
    """
    if together == 1:
        raise _OutOfMemoryError(device)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    on_notice(f"{together} faces at once do not fit into the memory of {device}; going on with {together // 2}")
    return together // 2


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device's memory is full, whichever device it is."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _FULL)
