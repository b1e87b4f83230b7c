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

import torch
from PIL import Image

from faceprior.app.controls import Controls, preset_name
from faceprior.app.options import ServeOptions
from faceprior.errors import CancelledError, FacePriorError, OptionError
from faceprior.faces import DetectedFace, FaceDetector
from faceprior.images import Picture, read_picture, square, to_pil, to_tensor
from faceprior.pipeline.batches import BatchSampler, FaceInput
from faceprior.pipeline.crops import Crop
from faceprior.pipeline.face_prior import FacePriorPipeline, low_resolution
from faceprior.pipeline.outputs import Outputs
from faceprior.pipeline.photo import PhotoFace, find_faces, is_aligned_crop
from faceprior.pipeline.recipe import RestoreOptions
from faceprior.pipeline.restore_photo import Photo, RestoredPhoto
from faceprior.pipeline.results import Restored
from faceprior.sampling import Step

_REMEMBERED = 64  # photographs whose faces need not be looked for again


@dataclass(frozen=True, eq=False)
class Subject:
    """A photograph that was looked at.

    Attributes:
        path: its file.
        picture: what was read from it.
        aligned: whether it is an aligned face crop rather than a photograph with faces in it.
        faces: the faces of a photograph, largest first; none for an aligned crop.
    """

    path: Path
    picture: Picture
    aligned: bool
    faces: tuple[PhotoFace, ...]

    @property
    def restorable(self) -> tuple[int, ...]:
        """Numbers, from 0, of the faces that are not left alone; an aligned crop is face 0."""
        if self.aligned:
            return (0,)
        return tuple(index for index, face in enumerate(self.faces) if face.left_alone is None)


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
        aligned: as of the `Subject`.
        faces: all faces of the photograph; none of an aligned crop.
        results: for each face what came out, None where it was left alone or not chosen; one for an aligned crop.
        command: the command line that makes the same pictures.
        seconds: that it took.
    """

    path: Path
    controls: Controls
    options: RestoreOptions
    aligned: bool
    faces: tuple[PhotoFace, ...]
    results: tuple[Restored | None, ...]
    command: str
    seconds: float

    @property
    def restored(self) -> list[tuple[int, Restored]]:
        """The faces that were restored, with their numbers from 1."""
        return [(number, result) for number, result in enumerate(self.results, 1) if result is not None]

    def whole(self, sample: int) -> tuple[Image.Image, Image.Image]:
        """The whole photograph before and after, of one size.

        Args:
            sample: which one, from 0.
        """
        if self.aligned:
            return self.close_up(0, sample)
        picture = read_picture(self.path)
        after = RestoredPhoto(picture, self.faces, self.results, self.options).image(sample)
        return picture.image.resize(after.size, Image.Resampling.LANCZOS), after

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


class _Known:
    """A detector that has found the faces already."""

    def __init__(self, name: str, found: list[DetectedFace]) -> None:
        self.name, self._found = name, found

    def __call__(self, photo: Image.Image, min_face: int = 0) -> list[DetectedFace]:  # noqa: ARG002
        return self._found


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
        self._found: OrderedDict[tuple[Any, ...], tuple[bool, tuple[PhotoFace, ...]]] = OrderedDict()
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
        picture = read_picture(path)
        pipeline = self._pipeline(controls)
        key = (str(path), controls.scale, pipeline.prior.card.name)
        with self._looking:  # detectors need not bear two threads
            if key not in self._found:
                self._found[key] = self._find(picture, pipeline, controls)
            self._found.move_to_end(key)
            while len(self._found) > _REMEMBERED:
                self._found.popitem(last=False)
            aligned, faces = self._found[key]
        return Subject(path, picture, aligned, faces)

    def _find(
        self, picture: Picture, pipeline: FacePriorPipeline, controls: Controls
    ) -> tuple[bool, tuple[PhotoFace, ...]]:
        card, photo = pipeline.prior.card, _recipe(controls).photo
        if self._detector is None:
            return True, ()
        detected = self._detector(picture.image, photo.min_face)
        if is_aligned_crop(picture.image, detected, card):
            return True, ()
        return False, tuple(find_faces(picture.image, _Known(self._detector.name, detected), card, photo))

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
        inputs = _inputs(subject, wanted, controls, pipeline.resolution)
        started, done = time.perf_counter(), 0
        total = pipeline.evaluations(options.preset) * len(inputs) * controls.samples
        for update in self._sample(pipeline, inputs, options):
            if isinstance(update, list):
                results: list[Restored | None] = [None] * max(1, len(subject.faces))
                for index, face, images in zip(wanted, inputs, update, strict=True):
                    results[index] = Restored(face.low_resolution, None, images)
                yield Run(
                    path=path,
                    controls=controls,
                    options=options,
                    aligned=subject.aligned,
                    faces=subject.faces,
                    results=tuple(results),
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
        self, pipeline: FacePriorPipeline, inputs: Sequence[FaceInput], options: RestoreOptions
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
        inputs: Sequence[FaceInput],
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

            sampler = BatchSampler(pipeline, options.preset, options.samples, options.batch_size, stepped)
            sampled = []
            for samples in sampler(inputs):
                if isinstance(samples, FacePriorError):
                    raise samples
                sampled.append(samples)
            return sampled

    def write(self, run: Run, folder: Path) -> list[Path]:
        """Write the results of a run as `faceprior restore` does, into an empty folder.

        Returns:
            The files: of each sample, and of their mean and disagreement.
        """
        pipeline = self._pipeline(run.controls)
        picture, outputs = read_picture(run.path), Outputs(folder, run.path.stem)
        samples = [result.images for _, result in run.restored]
        work = (
            Crop(pipeline, run.path, picture, run.options)
            if run.aligned
            else Photo(pipeline, run.path, picture, run.faces, run.options)
        )
        work.write(samples, outputs)
        return [folder / file["file"] for file in outputs.files]

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


def _inputs(subject: Subject, wanted: Sequence[int], controls: Controls, resolution: int) -> list[FaceInput]:
    if subject.aligned:
        face = to_tensor(square(subject.picture.image))
        return [FaceInput(low_resolution(face, controls.scale_value, resolution), controls.seed)]
    return [FaceInput(subject.faces[index].low_resolution, controls.seed, index) for index in wanted]


def _nothing_to_do(subject: Subject) -> str:
    if not subject.faces:
        return "no face was found; choose a photograph with a face that is at least 24 pixels high"
    if not subject.restorable:
        reasons = ", ".join(sorted({face.left_alone for face in subject.faces if face.left_alone is not None}))
        return f"there is nothing to restore: {reasons}"
    return "no face is chosen; click one, or tick it in the list"
