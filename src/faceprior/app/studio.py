"""What the page does, without the page: look at a photograph, restore it under watch, write what came out."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from PIL import Image

from faceprior.app.controls import Controls, preset_name
from faceprior.app.options import ServeOptions
from faceprior.errors import CancelledError, FacePriorError, OptionError
from faceprior.faces import FaceDetector
from faceprior.folders.outputs import write_results
from faceprior.images import Picture, decode_picture, read_file, read_picture, to_pil
from faceprior.photographs import (
    Condition,
    Face,
    Prepared,
    RestoredFace,
    RestoreOptions,
    compose,
    how_made,
    paste_faces,
    prepare,
    restore,
)
from faceprior.pipeline.face_prior import FacePriorPipeline
from faceprior.sampling import Step

_REMEMBERED = 64  # photographs whose faces need not be looked for again


@dataclass(frozen=True, eq=False)
class Subject:
    """A photograph that was looked at.

    Attributes:
        path: its file.
        prepared: its faces, ready for the networks.
    """

    path: Path
    prepared: Prepared

    @property
    def picture(self) -> Picture:
        """The photograph, decoded."""
        return decode_picture(self.prepared.content, self.prepared.name)

    @property
    def aligned(self) -> bool:
        """Whether it is an aligned face crop rather than a photograph with faces in it."""
        return self.prepared.aligned

    @property
    def faces(self) -> tuple[Face, ...]:
        """The faces of a photograph, largest first; none for an aligned crop."""
        return self.prepared.faces

    @property
    def restorable(self) -> tuple[int, ...]:
        """Numbers, from 0, of the faces that are not left alone; an aligned crop is face 0."""
        return tuple(condition.index for condition in self.prepared.conditions)


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
    """What a restoration came to. It holds no photograph, so that one for each visitor fits into memory.

    Attributes:
        path: the photograph's file.
        controls: how it was restored.
        options: the same in the pipeline's terms.
        prepared: the photograph, without its content, and the faces of it that were restored.
        results: what came out, for each of its conditions.
        command: the command line that makes the same pictures.
        seconds: that it took.
    """

    path: Path
    controls: Controls
    options: RestoreOptions
    prepared: Prepared
    results: tuple[RestoredFace, ...]
    command: str
    seconds: float

    @property
    def aligned(self) -> bool:
        """Whether it is an aligned face crop rather than a photograph with faces in it."""
        return self.prepared.aligned

    @property
    def restored(self) -> list[tuple[int, RestoredFace]]:
        """The faces that were restored, with their numbers from 1."""
        pairs = zip(self.prepared.conditions, self.results, strict=True)
        return [(condition.index + 1, result) for condition, result in pairs]

    def whole(self, sample: int) -> tuple[Image.Image, Image.Image]:
        """The whole photograph before and after, of one size.

        Args:
            sample: which one, from 0.
        """
        if self.aligned:
            return self.close_up(0, sample)
        before = read_picture(self.path).image
        faces = [self.prepared.faces[condition.index] for condition in self.prepared.conditions]
        images = [result.images[sample] for result in self.results]
        blend, upscale = self.options.blend, self.options.upscale
        after = Image.fromarray(paste_faces(np.asarray(before), faces, images, blend=blend, upscale=upscale))
        return before.resize(after.size, Image.Resampling.LANCZOS), after

    def close_up(self, face: int, sample: int) -> tuple[Image.Image, Image.Image]:
        """A face before (enlarged) and after.

        Args:
            face: position in `restored`.
            sample: which one, from 0.
        """
        result = self.restored[face][1]
        return to_pil(result.bicubic), to_pil(result.images[sample])

    @property
    def agreement(self) -> list[float]:
        """LR consistency of each sample in dB, the lowest over the faces."""
        return [min(values) for values in zip(*(result.lr_consistency for _, result in self.restored), strict=True)]

    @property
    def mean_spread(self) -> float:
        """Mean standard deviation of the samples, on the scale of [0, 1] pixel values."""
        return sum(float(result.spread.mean()) for _, result in self.restored) / len(self.restored)

    def report(self) -> dict[str, Any]:
        """The numbers of the run."""
        preset = self.options.preset
        return {
            "faces": [
                {
                    "number": number,
                    "scale": round(result.images.shape[-1] / result.low_resolution.shape[-1], 3),
                    "lr_consistency": [round(value, 2) for value in result.lr_consistency],
                    "spread": round(float(result.spread.mean()), 4),
                }
                for number, result in self.restored
            ],
            "method": preset.method,
            "options": preset.as_dict(),
            "seed": self.controls.seed,
            "seconds": round(self.seconds, 2),
            "command": self.command,
        }


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
        self._found: OrderedDict[tuple[Any, ...], Prepared] = OrderedDict()
        self._looking, self._working = threading.Lock(), threading.Lock()

    @property
    def priors(self) -> list[str]:
        """Names of the priors, the default first."""
        return list(self._pipelines)

    def corrector_stride(self, prior: str | None = None) -> int | None:
        """The stride of the corrector that comes with this prior; None where there is none."""
        corrector = self._pipeline(Controls(prior=prior)).corrector
        return None if corrector is None else int(corrector.stride)

    def look(self, path: Path, controls: Controls) -> Subject:
        """Read a photograph and find its faces.

        Raises:
            ImageError: it cannot be read.
        """
        content, pipeline = read_file(path), self._pipeline(controls)
        key = (str(path), controls.scale, pipeline.prior.card.name)
        with self._looking:  # detectors need not bear two threads
            if key not in self._found:
                options = replace(_recipe(controls), kind="auto" if self._detector is not None else "aligned")
                prepared = prepare(content, path.name, pipeline.prior.card, options, self._detector)
                self._found[key] = replace(prepared, content=b"")  # which is on the disk
            self._found.move_to_end(key)
            while len(self._found) > _REMEMBERED:
                self._found.popitem(last=False)
            return Subject(path, replace(self._found[key], content=content))

    def restore(
        self, path: Path, controls: Controls, chosen: Collection[int] | None = None
    ) -> Iterator[Progress | Run]:
        """Restore a photograph; closing the iterator stops the sampler at its next step.

        Args:
            path: the file.
            controls: how.
            chosen: numbers, from 0, of the faces; None for all.

        Yields:
            A `Progress` after steps, some of them left out where they are not fetched in time; at last the `Run`.

        Raises:
            FacePriorError: what is wrong with the photograph, with an option, or that it took too long.
        """
        if controls.samples > self._options.max_samples:
            raise OptionError(
                f"{controls.samples} samples were asked for; this server makes {self._options.max_samples}"
            )
        pipeline = self._pipeline(controls)
        pipeline.check(controls.preset)
        subject = self.look(path, controls)
        wanted = [index for index in subject.restorable if chosen is None or index in chosen]
        unknown = set(chosen or ()) - set(range(max(1, len(subject.faces))))
        if unknown:
            raise OptionError(f"there is no face {max(unknown) + 1}; {len(subject.faces) or 1} can be chosen from")
        if not wanted:
            raise OptionError(_nothing_to_do(subject))
        numbers = () if len(wanted) == len(subject.restorable) else tuple(index + 1 for index in wanted)
        options = replace(_recipe(controls), chosen=numbers)
        prepared = subject.prepared.choose(wanted)
        started, done = time.perf_counter(), 0
        total = pipeline.evaluations(options.preset) * len(wanted) * controls.samples
        for update in self._sample(pipeline, prepared.conditions, options):
            if isinstance(update, list):
                pairs = zip(prepared.conditions, update, strict=True)
                yield Run(
                    path=path,
                    controls=controls,
                    options=options,
                    prepared=replace(prepared, content=b""),
                    results=tuple(RestoredFace(face.low_resolution, None, images) for face, images in pairs),
                    command=self._command(path, controls, subject, numbers),
                    seconds=time.perf_counter() - started,
                )
            else:
                samples, x0 = update
                done += samples
                if x0 is not None:
                    yield Progress(done, total, tuple(to_pil(image) for image in x0))
        return

    def _sample(
        self, pipeline: FacePriorPipeline, inputs: Sequence[Condition], options: RestoreOptions
    ) -> Iterator[tuple[int, torch.Tensor | None] | list[torch.Tensor]]:
        """Sample on a thread of its own, so that whoever waits can stop it between two steps."""
        stopped = threading.Event()
        updates: SimpleQueue[tuple[int, torch.Tensor | None] | list[torch.Tensor] | BaseException] = SimpleQueue()

        def work() -> None:
            try:
                updates.put(self._sample_here(pipeline, inputs, options, stopped, updates.put))
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

    def _sample_here(
        self,
        pipeline: FacePriorPipeline,
        inputs: Sequence[Condition],
        options: RestoreOptions,
        stopped: threading.Event,
        report: Callable[[tuple[int, torch.Tensor]], object],
    ) -> list[torch.Tensor]:
        with self._working:
            deadline = time.monotonic() + self._options.time_limit

            def stepped(_step: Step, x0: torch.Tensor, _positions: Sequence[int]) -> None:
                if stopped.is_set():
                    raise CancelledError("stopped")
                if time.monotonic() > deadline:
                    raise CancelledError(
                        f"this took longer than {self._options.time_limit:g} seconds, the limit of this server;"
                        " ask for fewer faces, samples or steps, or for another method"
                    )
                report((len(x0), x0.detach().cpu()))

            sampled = []
            for samples in restore(pipeline, inputs, options, stepped):
                if isinstance(samples, FacePriorError):
                    raise samples
                sampled.append(samples)
            return sampled

    def write(self, run: Run, folder: Path) -> list[Path]:
        """Write the results of a run as `faceprior restore` does, into an empty folder.

        Returns:
            The files: of each sample, and of their mean and disagreement.
        """
        prepared = replace(run.prepared, content=read_file(run.path))
        samples = [result.images for result in run.results]
        composed = compose(prepared, samples, how_made(self._pipeline(run.controls), run.options), run.options)
        return [folder / file["file"] for file in write_results(composed, folder, run.path.stem)]

    def _pipeline(self, controls: Controls) -> FacePriorPipeline:
        name = controls.prior if controls.prior is not None else self.priors[0]
        if name not in self._pipelines:
            raise OptionError(f"prior {name!r} is not served here; choose {', '.join(self.priors)}")
        return (self._pipelines if controls.corrector else self._without)[name]

    def _command(self, path: Path, controls: Controls, subject: Subject, numbers: Sequence[int]) -> str:
        named = replace(controls, prior=controls.prior if controls.prior is not None else self.priors[0])
        return named.command(path.name, numbers, aligned=subject.aligned, default_prior=self._own_prior)


def _recipe(controls: Controls) -> RestoreOptions:
    return RestoreOptions(
        scale=controls.scale_value,
        preset=controls.preset,
        preset_name=preset_name(controls.method),
        samples=controls.samples,
        seed=controls.seed,
        blend=controls.strength,
        upscale=controls.enlarge,  # type: ignore[arg-type]  # checked by Controls
    )


def _nothing_to_do(subject: Subject) -> str:
    if not subject.faces:
        return "no face was found; choose a photograph with a face that is at least 24 pixels high"
    if not subject.restorable:
        reasons = ", ".join(sorted({face.left_alone for face in subject.faces if face.left_alone is not None}))
        return f"there is nothing to restore: {reasons}"
    return "no face is chosen; click one, or tick it in the list"
