"""Pictures on their way from the disk through the networks and back, several at once.

Pictures are read, and their faces found, on some threads, and composed and written on another, while the networks
compute on the caller's. All decisions are made on the caller's thread, between the steps of the sampler, so that
there is nothing to lock. Faces of several pictures fill a batch. Pictures leave in the order in which they came, and
what is held in memory is bounded, whatever their number.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image

from faceprior.errors import FacePriorError, ImageError, OutputError
from faceprior.faces import DetectedFace, FaceDetector
from faceprior.images import Picture, read_picture
from faceprior.pipeline.batches import BatchSampler, FaceInput, is_out_of_memory
from faceprior.pipeline.crops import Crop
from faceprior.pipeline.face_prior import FacePriorPipeline
from faceprior.pipeline.inputs import Input
from faceprior.pipeline.manifest import Manifest, Record
from faceprior.pipeline.outputs import Outputs
from faceprior.pipeline.photo import find_faces, is_aligned_crop
from faceprior.pipeline.recipe import RestoreOptions
from faceprior.pipeline.restore_photo import Photo
from faceprior.sampling import Step

MAX_PIXELS_HELD = 64_000_000
"""Pixels of photographs between reading and writing above which none is read: about half a gigabyte of memory."""

_READERS = max(1, min(4, (os.cpu_count() or 1) // 2))
_PICTURES_BEHIND = 16  # that wait for the disk


class Watcher(Protocol):
    """Looks on while files are restored. All is called on the caller's thread."""

    def on_faces(self, faces: int) -> object:
        """An input was read, and so many faces of it will be restored: none, where it failed or was done before."""

    def on_step(self, samples: int) -> object:
        """A step of the sampler is done for so many samples."""

    def on_notice(self, text: str) -> object:
        """There is something to tell the user, in a sentence."""


class NoWatcher(Watcher):
    """Looks away."""

    def on_faces(self, faces: int) -> None:
        """Do nothing."""

    def on_step(self, samples: int) -> None:
        """Do nothing."""

    def on_notice(self, text: str) -> None:
        """Do nothing."""


@dataclass(eq=False)
class _Item:
    """An input on its way; what it holds is let go as soon as it is not needed."""

    given: Input
    name: str
    earlier: Record | None  # its record, if an earlier run has done it
    stamp: dict[str, int] | None = None
    reading: Future[Crop | Photo] | None = None
    job: Crop | Photo | None = None
    samples: list[torch.Tensor] = field(default_factory=list)
    missing: int = 0  # faces that are not sampled yet
    writing: Future[Record] | None = None
    error: BaseException | None = None
    seconds: float = 0.0

    @property
    def pixels(self) -> int:
        return self.job.pixels if self.job is not None else 0

    def fail(self, error: BaseException) -> None:
        if self.error is None:
            self.error = error


class Stages:
    """Moves inputs through reading, sampling and writing.

    Args:
        pipeline: prior and corrector.
        detector: finds faces; None where every input is an aligned face.
        output: folder of the results.
        options: how pictures are restored.
        manifest: gets a record as soon as an input is finished.
        watcher: looks on.
    """

    def __init__(
        self,
        pipeline: FacePriorPipeline,
        detector: FaceDetector | None,
        output: Path,
        options: RestoreOptions,
        manifest: Manifest,
        watcher: Watcher,
    ) -> None:
        self._pipeline, self._detector, self._output, self._options = pipeline, detector, output, options
        self._manifest, self._watcher = manifest, watcher
        self._sampler = BatchSampler(
            pipeline, options.preset, options.samples, options.batch_size, self._stepped, watcher.on_notice
        )
        self._todo: Iterator[_Item] = iter(())
        # one after the other in order; an item moves on only when those before it have
        self._reading, self._sampling, self._writing = deque[_Item](), deque[_Item](), deque[_Item]()
        self._faces = deque[tuple[_Item, FaceInput]]()  # that wait for the networks, of items in `_sampling`
        self._records = deque[Record]()
        self._readers = ThreadPoolExecutor(_READERS, "faceprior-read")
        self._writer = ThreadPoolExecutor(1, "faceprior-write")

    def run(self, inputs: Sequence[Input], names: Sequence[str]) -> Iterator[Record]:
        """Restore inputs.

        Args:
            inputs: the files.
            names: what the results of each are called.

        Yields:
            The record of each input, in order.

        Raises:
            OutputError: the manifest cannot be written.
        """
        self._todo = (
            _Item(given, name, self._manifest.find(given.path)) for given, name in zip(inputs, names, strict=True)
        )
        try:
            self._read_ahead()
            while self._reading or self._sampling or self._writing:
                if self._reading and len(self._faces) < self._sampler.faces_at_once and self._has_room():
                    self._take_picture()
                elif self._faces:
                    self._sample()
                self._start_writing()
                idle = not self._reading and not self._faces
                self._note_written(wait=idle or not self._has_room() or len(self._writing) > _PICTURES_BEHIND)
                self._read_ahead()
                while self._records:
                    yield self._records.popleft()
        finally:
            self._readers.shutdown(cancel_futures=True)
            self._writer.shutdown(cancel_futures=True)
            self._note_written()  # a run that is stopped keeps what it has finished

    def _has_room(self) -> bool:
        return sum(item.pixels for item in (*self._sampling, *self._writing)) < MAX_PIXELS_HELD

    def _stepped(self, _step: Step, x0: torch.Tensor, _faces: Sequence[int]) -> None:
        self._watcher.on_step(len(x0))
        self._read_ahead()
        self._note_written()

    # --- reading

    def _read_ahead(self) -> None:
        """Begin to read the next pictures, unless enough of them wait."""
        while self._wants_more():
            item = next(self._todo, None)
            if item is None:
                return
            if item.earlier is None:
                item.reading = self._readers.submit(self._read, item)
            self._reading.append(item)

    def _wants_more(self) -> bool:
        under_way = sum(item.reading is not None and not item.reading.done() for item in self._reading)
        held = sum(item.pixels for queue in (self._reading, self._sampling, self._writing) for item in queue)
        enough = _READERS + 2 * self._sampler.faces_at_once
        return under_way <= _READERS and len(self._reading) < enough and held < MAX_PIXELS_HELD

    def _read(self, item: _Item) -> Crop | Photo:
        """Read a picture and find its faces; on a thread of the readers."""
        started = time.perf_counter()
        given = item.given
        if given.problem is not None:
            raise ImageError(given.problem)
        try:
            item.stamp = file_stamp(given.path)  # before it is read: it may change meanwhile
        except OSError as error:
            raise ImageError(f"{given.path}: cannot be opened ({error.strerror}); check the name") from error
        picture = read_picture(given.path)
        item.job = self._job(given.path, picture)
        item.seconds += time.perf_counter() - started
        return item.job

    def _job(self, path: Path, picture: Picture) -> Crop | Photo:
        pipeline, options = self._pipeline, self._options
        if options.kind == "aligned" or options.degradation is not None:
            return Crop(pipeline, path, picture, options)
        card, found = pipeline.prior.card, list[DetectedFace]()
        if self._detector is not None:
            found = self._detector(picture.image, options.min_face)
        if options.kind == "auto" and is_aligned_crop(picture.image, found, card):
            return Crop(pipeline, path, picture, options)
        if self._detector is None:
            raise ImageError(
                f"{path}: looks like a whole photograph, and finding faces needs an extra;"
                " pip install 'faceprior[faces]', or say --aligned if it is one face that fills the picture"
            )
        faces = find_faces(picture.image, Found(self._detector.name, found), card, options.photo)
        return Photo(pipeline, path, picture, faces, options)

    def _take_picture(self) -> None:
        """Take the next picture from the readers; its faces now wait for the networks."""
        item = self._reading.popleft()
        self._sampling.append(item)
        if item.reading is not None:
            error = item.reading.exception()
            item.reading = None
            if error is not None:
                item.fail(error)
        faces = item.job.faces if item.job is not None else []
        item.missing = len(faces)
        self._faces.extend((item, face) for face in faces)
        self._watcher.on_faces(len(faces))

    # --- sampling

    def _sample(self) -> None:
        """Take a batch of faces through the networks."""
        started = time.perf_counter()
        batch = [self._faces.popleft() for _ in range(min(len(self._faces), self._sampler.faces_at_once))]
        results = self._sampler([face for _, face in batch])
        seconds = (time.perf_counter() - started) / len(batch)
        for (item, _), result in zip(batch, results, strict=True):
            item.missing -= 1
            item.seconds += seconds
            if isinstance(result, FacePriorError):
                item.fail(result)
            else:
                item.samples.append(result)

    # --- writing

    def _start_writing(self) -> None:
        while self._sampling and self._sampling[0].missing == 0:
            item = self._sampling.popleft()
            self._writing.append(item)
            if item.job is not None and item.error is None:
                item.writing = self._writer.submit(self._write, item, item.job)

    def _write(self, item: _Item, job: Crop | Photo) -> Record:
        """Compose and write the results; on the writer's thread."""
        started = time.perf_counter()
        outputs = Outputs(self._output, item.name)
        record = job.write(item.samples, outputs)
        seconds = item.seconds + time.perf_counter() - started
        return {"name": item.name, **record, "outputs": outputs.files, "seconds": round(seconds, 3)}

    def _note_written(self, *, wait: bool = False) -> None:
        """Put down what is written, in order; wait for the first to be if that is asked for."""
        while self._writing:
            item = self._writing[0]
            if item.writing is not None and (item.writing.cancelled() or not (wait or item.writing.done())):
                return
            record = _record(item)
            self._writing.popleft()
            self._records.append(record)
            if item.earlier is None:
                self._manifest.append(record)
            wait = False


@dataclass(frozen=True)
class Found:
    """A detector that has found its faces already."""

    name: str
    faces: Sequence[DetectedFace]

    def __call__(self, photo: Image.Image, min_face: int = 0) -> list[DetectedFace]:  # noqa: ARG002
        """Return them."""
        return list(self.faces)


def file_stamp(path: Path) -> dict[str, int]:
    """What tells whether a file has changed; raises OSError if there is none."""
    status = path.stat()
    return {"bytes": status.st_size, "modified_ns": status.st_mtime_ns}


def _record(item: _Item) -> Record:
    if item.earlier is not None:
        return {**item.earlier, "earlier": True}
    error = item.error or (item.writing.exception() if item.writing is not None else None)
    record: Record = {"input": str(item.given.path)}
    if error is not None:
        return {**record, "status": "failed", "error": _message(item.given.path, error)}
    written = item.writing.result() if item.writing is not None else {}
    return {**record, "status": "done", "file": item.stamp, **written}


def _message(path: Path, error: BaseException) -> str:
    if isinstance(error, OutputError):
        return str(error)  # which names the result
    if isinstance(error, FacePriorError):
        text = str(error)
    elif is_out_of_memory(error):
        text = "does not fit into the memory; reduce the picture, or close other programs"
    else:
        text = f"stopped by what should not happen ({type(error).__name__}: {error}); please report it"
    return text if text.startswith(str(path)) else f"{path}: {text}"
