"""Restoring files, any number of them: every input is done, or said why not, and nothing is done twice.

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
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from faceprior.errors import FacePriorError, ImageError, OutputError
from faceprior.faces import FaceDetector
from faceprior.folders.inputs import Input, output_names
from faceprior.folders.manifest import Manifest, Record
from faceprior.folders.outputs import write_results
from faceprior.images import MIN_SIDE, read_file
from faceprior.photographs import Condition, Prepared, RestoreOptions, compose, how_made, prepare
from faceprior.photographs.options import settings
from faceprior.photographs.prepare import degraded_scale
from faceprior.photographs.restore import BatchSampler, is_out_of_memory
from faceprior.pipeline.conversions import low_resolution
from faceprior.pipeline.face_prior import FacePriorPipeline
from faceprior.sampling import Step

MAX_BYTES_HELD = 256_000_000
"""Bytes of pictures between reading and writing above which none is read."""

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


def restore_files(
    pipeline: FacePriorPipeline,
    inputs: Sequence[Input],
    output: Path,
    options: RestoreOptions,
    detector: FaceDetector | None = None,
    *,
    resume: bool = False,
    watcher: Watcher | None = None,
) -> Iterator[Record]:
    """Restore pictures from files into a folder.

    Of an aligned face it writes `<name>.png`, for several samples also `<name>-2.png` …, `<name>-mean.png` and
    `<name>-spread.png`; of a photograph the whole of it in its own format, again once for each sample and for their
    mean. A photograph in which nothing is restored is copied, or only enlarged. An input that cannot be read or
    written fails alone.

    `restore.jsonl` gets a line for each input as soon as its results are written, in the order of the inputs; a
    run that was stopped at any moment goes on from there. What failed is tried again, and goes to the end.

    Args:
        pipeline: prior and corrector.
        inputs: the files.
        output: folder; made if it is missing.
        options: how.
        detector: finds faces in photographs; without one every input must be an aligned face.
        resume: leave out what the manifest in the folder says is done, if there is one.
        watcher: looks on.

    Yields:
        A record for every input, in the order of the inputs: "input", "status" ("done" or "failed"), and either
        "error" or what the manifest says of it (docs/folders.md); "earlier" is True in those of an earlier run.

    Raises:
        OutputError: the folder cannot be made or written to.
        OptionError: the scale does not fit the prior, or the run that is resumed had other options.
    """
    _check_scale(options, pipeline.resolution)
    watcher = watcher or NoWatcher()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{output}: cannot be written to ({error.strerror}); choose another --output") from error
    if resume:
        _remove_partials(inputs, output)
    own = settings(pipeline, options, detector.name if detector else None)
    with closing(Manifest(output, own, resume=resume, is_valid=_Unchanged(inputs, output))) as manifest:
        kept = {i: manifest.names[str(g.path)] for i, g in enumerate(inputs) if str(g.path) in manifest.names}
        if kept:
            watcher.on_notice(f"{len(kept)} of {len(inputs)} were done before")
        suffixes = [""] if options.only_faces else options.suffixes
        names = output_names(inputs, output, suffixes, kept)
        yield from _Stages(pipeline, detector, output, options, manifest, watcher).run(inputs, names)


def _check_scale(options: RestoreOptions, resolution: int) -> None:
    scale = options.scale if options.degradation is None else degraded_scale(options)
    low_resolution(torch.zeros(3, MIN_SIDE, MIN_SIDE), scale, resolution)


def _remove_partials(inputs: Sequence[Input], output: Path) -> None:
    """Remove what a killed run was writing."""
    for folder in {output, *(output / given.folder for given in inputs)}:
        for partial in folder.glob(".faceprior-*.partial"):
            partial.unlink(missing_ok=True)


class _Unchanged:
    """Says of a record of an earlier run whether its input and its results are still as they were."""

    def __init__(self, inputs: Sequence[Input], output: Path) -> None:
        self._inputs, self._output = {str(given.path) for given in inputs}, output

    def __call__(self, record: Record) -> bool:
        if record["input"] not in self._inputs:
            return True  # not our business now
        try:
            if file_stamp(Path(record["input"])) != record["file"]:
                return False
            outputs = record["outputs"]
            return all((self._output / own["file"]).stat().st_size == own["bytes"] for own in outputs)
        except (OSError, KeyError, TypeError):
            return False


@dataclass(eq=False)
class _Item:
    """An input on its way; what it holds is let go as soon as it is not needed."""

    given: Input
    name: str
    earlier: Record | None  # its record, if an earlier run has done it
    stamp: dict[str, int] | None = None
    reading: Future[Prepared] | None = None
    prepared: Prepared | None = None
    samples: list[torch.Tensor | FacePriorError] = field(default_factory=list)
    missing: int = 0  # faces that are not sampled yet
    writing: Future[Record] | None = None
    error: BaseException | None = None
    seconds: float = 0.0

    @property
    def bytes(self) -> int:
        return len(self.prepared.content) if self.prepared is not None else 0

    def fail(self, error: BaseException) -> None:
        if self.error is None:
            self.error = error


class _Stages:
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
        self._manifest, self._watcher, self._made = manifest, watcher, how_made(pipeline, options)
        self._sampler = BatchSampler(pipeline, options, self._stepped, watcher.on_notice)
        self._todo: Iterator[_Item] = iter(())
        # one after the other in order; an item moves on only when those before it have
        self._reading, self._sampling, self._writing = deque[_Item](), deque[_Item](), deque[_Item]()
        self._faces = deque[tuple[_Item, Condition]]()  # that wait for the networks, of items in `_sampling`
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
        return sum(item.bytes for item in (*self._sampling, *self._writing)) < MAX_BYTES_HELD

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
        held = sum(item.bytes for queue in (self._reading, self._sampling, self._writing) for item in queue)
        enough = _READERS + 2 * self._sampler.faces_at_once
        return under_way <= _READERS and len(self._reading) < enough and held < MAX_BYTES_HELD

    def _read(self, item: _Item) -> Prepared:
        """Read a picture and find its faces; on a thread of the readers."""
        started = time.perf_counter()
        given = item.given
        if given.problem is not None:
            raise ImageError(given.problem)
        try:
            item.stamp = file_stamp(given.path)  # before it is read: it may change meanwhile
        except OSError as error:
            raise ImageError(f"{given.path}: cannot be opened ({error.strerror}); check the name") from error
        content = read_file(given.path)
        item.prepared = prepare(content, given.path.name, self._pipeline.prior.card, self._options, self._detector)
        item.seconds += time.perf_counter() - started
        return item.prepared

    def _take_picture(self) -> None:
        """Take the next picture from the readers; its faces now wait for the networks."""
        item = self._reading.popleft()
        self._sampling.append(item)
        if item.reading is not None:
            error = item.reading.exception()
            item.reading = None
            if error is not None:
                item.fail(error)
        conditions = item.prepared.conditions if item.prepared is not None else ()
        item.missing = len(conditions)
        self._faces.extend((item, condition) for condition in conditions)
        self._watcher.on_faces(len(conditions))

    # --- sampling

    def _sample(self) -> None:
        """Take a batch of faces through the networks."""
        started = time.perf_counter()
        batch = [self._faces.popleft() for _ in range(min(len(self._faces), self._sampler.faces_at_once))]
        results = self._sampler([condition for _, condition in batch])
        seconds = (time.perf_counter() - started) / len(batch)
        for (item, _), result in zip(batch, results, strict=True):
            item.missing -= 1
            item.seconds += seconds
            item.samples.append(result)

    # --- writing

    def _start_writing(self) -> None:
        while self._sampling and self._sampling[0].missing == 0:
            item = self._sampling.popleft()
            self._writing.append(item)
            if item.prepared is not None and item.error is None:
                item.writing = self._writer.submit(self._write, item, item.prepared)

    def _write(self, item: _Item, prepared: Prepared) -> Record:
        """Compose and write the results; on the writer's thread."""
        started = time.perf_counter()
        composed = compose(prepared, item.samples, self._made, self._options)
        outputs = write_results(composed, self._output, item.name, item.given.path)
        seconds = item.seconds + time.perf_counter() - started
        return {"name": item.name, **composed.record, "outputs": outputs, "seconds": round(seconds, 3)}

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
    if isinstance(error, OutputError) and not str(error).startswith(f"{path.name}: "):
        return str(error)  # which names the result
    if isinstance(error, FacePriorError):
        text = str(error)
    elif is_out_of_memory(error):
        text = "does not fit into the memory; reduce the picture, or close other programs"
    else:
        text = f"stopped by what should not happen ({type(error).__name__}: {error}); please report it"
    return text if text.startswith(str(path)) else f"{path}: {text.removeprefix(f'{path.name}: ')}"
