"""What the page does, without the page: look at a photograph, restore it under watch, write what came out."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
from PIL import Image

from faceprior.app import words
from faceprior.app.controls import Controls, acting_controls
from faceprior.app.options import ServeOptions
from faceprior.errors import CancelledError, FacePriorError, OptionError
from faceprior.faces import FaceDetector
from faceprior.folders.outputs import write_results
from faceprior.images import Picture, read_file, to_pil
from faceprior.photographs import (
    Composed,
    Condition,
    Prepared,
    RestoreOptions,
    compose,
    how_made,
    prepare,
    restore,
)
from faceprior.pipeline.face_prior import FacePriorPipeline, Samples
from faceprior.sampling import Step

_REMEMBERED = 64  # photographs whose faces need not be looked for again


@dataclass(frozen=True, eq=False)
class Progress:
    """A step of the sampler is done.

    Attributes:
        done: steps that are done.
        total: steps of the whole restoration.
        emerging: the samples of the face at work as they look now.
    """

    done: int
    total: int
    emerging: tuple[Image.Image, ...]


@dataclass(frozen=True, eq=False)
class Run:
    """What a restoration came to.

    Attributes:
        prepared: the photograph, and the faces of it that were restored.
        options: how.
        samples: of each of its conditions.
        doubt: of each, the half-width of an interval around the first sample that holds the true pixel with a
            probability of 90 %, (faces, R, R) on the scale of [0, 1] pixel values; None where it is not known.
        made: what the results say about how they were made.
        command: the command line that makes the same.
        seconds: that it took.
    """

    prepared: Prepared
    options: RestoreOptions
    samples: tuple[Samples, ...]
    doubt: torch.Tensor | None
    made: Mapping[str, Any]
    command: str
    seconds: float

    def write(self, folder: Path) -> tuple[list[Path], Composed]:
        """Write the results as `faceprior restore` does, but for the name; returns the files and what they are."""
        composed = compose(self.prepared, self.samples, self.made, self.options, self.doubt)
        written = write_results(composed, folder, f"{Path(self.prepared.name).stem}-restored")
        return [folder / file["file"] for file in written], composed


class Studio:
    """The priors that are served, and the work on them: one restoration at a time.

    Args:
        pipelines: for each prior that a visitor may choose its pipeline; the first is the default.
        detector: finds faces; None takes every picture for an aligned face.
        options: the limits.
        own_prior: name of the prior that `faceprior restore` takes by itself.
    """

    def __init__(
        self,
        pipelines: Mapping[str, FacePriorPipeline],
        detector: FaceDetector | None,
        options: ServeOptions,
        own_prior: str,
    ) -> None:
        self._pipelines, self._detector, self._options = dict(pipelines), detector, options
        self._own_prior = own_prior
        # without corrector: the same networks, not copies
        self._without = {name: pipeline.without_corrector() for name, pipeline in pipelines.items()}
        self._seen: OrderedDict[tuple[Any, ...], Prepared] = OrderedDict()
        self._looking, self._working = threading.Lock(), threading.Lock()

    @property
    def priors(self) -> list[str]:
        """Names of the priors, the default first."""
        return list(self._pipelines)

    def corrector_stride(self, prior: str | None = None) -> int | None:
        """The stride of the corrector that comes with this prior; None where there is none."""
        crt = self._pipeline(Controls(prior=prior)).crt
        return None if crt is None else crt.network.stride

    def look(self, path: Path, controls: Controls, picture: Picture | None = None) -> Prepared:
        """Read a photograph and find its faces.

        Args:
            path: the file.
            controls: how.
            picture: what the file decodes to, where that is known.

        Raises:
            ImageError: it cannot be read.
        """
        content, card = read_file(path), self._pipeline(controls).prior.card
        with self._looking:  # detectors need not bear two threads
            key = (path, controls.scale, card.name)
            if key not in self._seen:
                options = replace(controls.recipe, kind="auto" if self._detector is not None else "aligned")
                same = next((seen for (place, *_), seen in self._seen.items() if place == path), None)
                found = None if same is None or same.aligned else same.detections
                prepared = prepare(content, path.name, card, options, self._detector, found, picture)
                self._seen[key] = replace(prepared, content=b"")  # which is on the disk
            self._seen.move_to_end(key)
            while len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
            return replace(self._seen[key], content=content)

    def restore(
        self, path: Path, controls: Controls, chosen: Collection[int] | None = None
    ) -> Iterator[Progress | Run]:
        """Restore a photograph; closing the iterator stops the sampler at its next step.

        Args:
            path: the file.
            controls: how.
            chosen: numbers, from 1, of the faces; None for all.

        Yields:
            A `Progress` after steps, some of them left out where they are not fetched in time; at last the `Run`.

        Raises:
            FacePriorError: what is wrong with the photograph, with an option, or that it took too long.
        """
        if controls.samples > self._options.max_samples:
            raise OptionError(
                f"{controls.samples} samples were asked for; this server makes {self._options.max_samples}"
            )
        pipeline, options = self._pipeline(controls), controls.recipe
        pipeline.check(options.preset)
        prepared = self.look(path, controls)
        if chosen is not None:
            prepared = _chosen(prepared, chosen)
        elif not prepared.conditions:
            raise OptionError(words.found(prepared))
        numbers = tuple(sorted(chosen)) if chosen is not None and not prepared.aligned else ()
        options = replace(options, kind="aligned" if prepared.aligned else "photo", chosen=numbers)
        command = controls.command(path.name, options, self.priors[0], self._own_prior)
        started, done = time.perf_counter(), 0
        total = pipeline.evaluations(options.preset) * len(prepared.conditions) * options.samples
        for update in self._sample(pipeline, prepared.conditions, options):
            if isinstance(update, list):
                made, seconds = how_made(pipeline, options), time.perf_counter() - started
                faces = [condition.low_resolution for condition in prepared.conditions]
                with self._working:
                    doubt = pipeline.doubt(faces, [own.images for own in update])
                yield Run(prepared, options, tuple(update), doubt, made, command, seconds)
            else:
                samples, x0 = update
                done += samples
                if x0 is not None:
                    yield Progress(done, total, tuple(to_pil(image) for image in x0))

    def _sample(
        self, pipeline: FacePriorPipeline, inputs: Sequence[Condition], options: RestoreOptions
    ) -> Iterator[tuple[int, torch.Tensor | None] | list[Samples]]:
        """Sample on a thread of its own, so that whoever waits can stop it between two steps."""
        stopped = threading.Event()
        updates: SimpleQueue[tuple[int, torch.Tensor | None] | list[Samples] | BaseException] = SimpleQueue()
        deadline = float("inf")

        def stepped(_step: Step, x0: torch.Tensor, _positions: Sequence[int]) -> None:
            if stopped.is_set():
                raise CancelledError("stopped")
            if time.monotonic() > deadline:
                raise CancelledError(
                    f"this took longer than {self._options.time_limit:g} seconds, the limit of this server;"
                    " ask for fewer faces, samples or steps, or for another method"
                )
            updates.put((len(x0), x0.detach().cpu()))

        def work() -> None:
            nonlocal deadline
            try:
                with self._working:
                    deadline = time.monotonic() + self._options.time_limit
                    sampled = restore(pipeline, inputs, options, stepped)
                failed = next((own for own in sampled if isinstance(own, FacePriorError)), None)
                updates.put(failed or [own for own in sampled if isinstance(own, Samples)])
            except BaseException as error:  # noqa: BLE001 - handed to the caller, who raises it
                updates.put(error)

        threading.Thread(target=work, name="faceprior-sampler", daemon=True).start()
        try:
            while True:
                update = updates.get()
                if isinstance(update, BaseException):
                    raise update
                if isinstance(update, tuple) and not updates.empty():
                    update = (update[0], None)  # a later picture is there already
                yield update
                if isinstance(update, list):
                    return
        finally:
            stopped.set()

    def _pipeline(self, controls: Controls) -> FacePriorPipeline:
        name = controls.prior if controls.prior is not None else self.priors[0]
        if name not in self._pipelines:
            raise OptionError(f"prior {name!r} is not served here; choose {', '.join(self.priors)}")
        left_out = not controls.corrector and "corrector" in acting_controls(controls.preset)
        return (self._without if left_out else self._pipelines)[name]


def _chosen(prepared: Prepared, numbers: Collection[int]) -> Prepared:
    """The same with fewer faces to restore; raises OptionError where one of them cannot be."""
    count = max(1, len(prepared.faces))
    if unknown := sorted(set(numbers) - set(range(1, count + 1))):
        raise OptionError(f"there is no face {unknown[-1]}; {count} can be chosen from")
    if not numbers:
        raise OptionError("no face is chosen; choose one")
    chosen = prepared.choose([number - 1 for number in numbers])
    if left := sorted(set(numbers) - {condition.index + 1 for condition in chosen.conditions}):
        why = prepared.faces[left[0] - 1].left_alone
        raise OptionError(f"face {left[0]} is left alone, for it is {why}; choose another")
    return chosen
