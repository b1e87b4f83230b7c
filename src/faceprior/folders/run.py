"""Restoring files, any number of them: every input is done, or said why not, and nothing is done twice.

Pictures are read and prepared on some threads, and composed and written on others, while the networks compute on the
caller's. All decisions are made on the caller's thread, between the steps of the sampler, so that there is nothing to
lock. Faces of several pictures fill a batch. Records leave in the order in which inputs came, and what is held in
memory is bounded, whatever their number.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch

from faceprior.clips.container import is_clip, output_suffix
from faceprior.devices import is_out_of_memory
from faceprior.errors import FacePriorError, ImageError, OptionError, OutputError
from faceprior.faces import FaceDetector
from faceprior.folders.inputs import Input, output_names
from faceprior.folders.manifest import Manifest, Record
from faceprior.folders.outputs import about_file, make_folder, write_results
from faceprior.images import MIN_SIDE
from faceprior.photographs import Condition, Prepared, RestoreOptions, compose, how_made, prepare, restore
from faceprior.photographs.options import settings
from faceprior.photographs.restore import doubts_of, faces_at_once
from faceprior.pipeline.conversions import low_resolution
from faceprior.pipeline.face_prior import FacePriorPipeline, Samples
from faceprior.sampling import Step
from faceprior.storage import Place, Url, as_file, place, read, reason, stamp, unreadable

MAX_BYTES_HELD = 256_000_000
"""Bytes of pictures between reading and writing above which none is read."""

_READERS = max(1, min(4, (os.cpu_count() or 1) // 2))
_PICTURES_BEHIND = 16  # that wait for the disk
_BESIDE = "-restored"  # appended to the name of a result that stands beside its input


class Watcher(Protocol):
    """Looks on while files are restored. All is called on the caller's thread."""

    def on_faces(self, faces: int) -> object:
        """An input was read, and so many faces of it will be restored: none, where it failed or was done before."""

    def on_step(self, samples: int) -> object:
        """A step of the sampler is done for so many samples."""

    def on_frame(self, clip: Path, stage: str, frames: int) -> object:
        """So many frames of a clip are done with a stage: "finding" or "restoring" its faces."""

    def on_notice(self, text: str) -> object:
        """There is something to tell the user, in a sentence."""


class NoWatcher(Watcher):
    """Looks away."""

    def _nothing(self, *_: Any, **__: Any) -> None:
        pass

    on_faces = on_step = on_frame = on_notice = _nothing


def restore_files(
    pipeline: FacePriorPipeline,
    inputs: Sequence[Input],
    output: Place | None,
    options: RestoreOptions,
    detector: FaceDetector | None = None,
    *,
    name: str | None = None,
    resume: bool = False,
    watcher: Watcher | None = None,
) -> Iterator[Record]:
    """Restore pictures and clips from files into a folder, or each beside itself.

    Of an aligned face it writes `<name>.png`, for several samples also `<name>-2.png` …, `<name>-mean.png` and
    `<name>-doubt.png`; of a photograph the whole of it in its own format, again once for each sample and for their
    mean. A photograph in which nothing is restored is copied, or only enlarged. An input that cannot be read or
    written fails alone.

    `restore.jsonl` in the folder gets a line for each input as soon as its results are written, in the order of the
    inputs; a run that was stopped at any moment goes on from there.

    Args:
        pipeline: prior and corrector.
        inputs: the files.
        output: folder, made if it is missing, or the URL of one. None writes each result beside its input, and no
            manifest.
        options: how.
        detector: finds faces in photographs and clips; without one every input must be an aligned face.
        name: what the results of the only input are called in the folder; then there is no manifest either.
        resume: leave out what the manifest in the folder says is done, if there is one.
        watcher: looks on.

    Yields:
        A record for every input, in the order of the inputs: "input", "status" ("done" or "failed"), and either
        "error" or what the manifest says of it (docs/folders.md); "earlier" is True in those of an earlier run.

    Raises:
        OutputError: the folder cannot be made or written to.
        OptionError: the scale does not fit the prior, or the run that is resumed had other options.
    """
    low_resolution(torch.zeros(3, MIN_SIDE, MIN_SIDE), options.scale, pipeline.resolution)  # is it one that fits?
    watcher, folder = watcher or NoWatcher(), output or Path()
    make_folder(folder)
    if resume and not isinstance(folder, Url):
        _remove_partials(inputs, folder)
    paths = {str(given.path) for given in inputs}
    manifest = None
    if output is not None and name is None:
        own = settings(pipeline, options, detector.name if detector else None)
        is_valid = _is_unchanged(inputs, output) if resume else lambda _record: False
        manifest = Manifest(output, own, paths, resume=resume, is_valid=is_valid)
    with closing(manifest) if manifest is not None else nullcontext():
        earlier = manifest.names if manifest is not None else {}
        if before := len(paths & earlier.keys()):
            watcher.on_notice(f"{before} of {len(inputs)} were done before")
        suffixes = [""] if options.only_faces else options.suffixes
        label = _BESIDE if output is None else ""
        names = [name] if name is not None else output_names(inputs, folder, suffixes, earlier, label)
        yield from _Run(pipeline, detector, folder, options, manifest, watcher).run(inputs, names)


def _remove_partials(inputs: Sequence[Input], output: Path) -> None:
    """Remove what a killed run was writing."""
    for folder in {output, *(output / given.folder for given in inputs)}:
        for partial in folder.glob(".faceprior-*.partial"):
            partial.unlink(missing_ok=True)


def _is_unchanged(inputs: Sequence[Input], output: Place) -> Callable[[Record], bool]:
    """Say of a record of an earlier run whether its input and its results are still as they were."""
    listed = {str(given.path): given.stamp for given in inputs if given.stamp is not None}
    sizes = _sizes(output) if isinstance(output, Url) else None

    def is_unchanged(record: Record) -> bool:
        try:
            name = record["input"]
            if (listed.get(name) or stamp(place(name))) != record["file"]:
                return False
            if sizes is not None:
                return all(sizes[own["file"]] == own["bytes"] for own in record["outputs"])
            return all(stamp(output / own["file"])["bytes"] == own["bytes"] for own in record["outputs"])
        except (OSError, KeyError, TypeError):
            return False

    return is_unchanged


def _sizes(output: Url) -> dict[str, int]:
    """The sizes of all files below a folder, for one listing is cheaper than asking for each."""
    try:
        return dict(output.files())
    except FileNotFoundError:  # a store has no empty folders
        return {}
    except OSError as error:
        raise OutputError(f"{output}: cannot be listed ({reason(error)}); check the access to it") from error


@dataclass(eq=False)
class _Item:
    """An input on its way; what it holds is let go as soon as it is not needed."""

    given: Input
    name: str
    earlier: Record | None  # its record, if an earlier run has done it
    stamp: dict[str, int] | None = None
    reading: Future[Prepared] | None = None
    prepared: Prepared | None = None
    samples: list[Samples | FacePriorError] = field(default_factory=list)
    doubt: list[torch.Tensor | None] = field(default_factory=list)  # of each of the samples
    missing: int = 0  # faces, or a clip, that are not restored yet
    taken: bool = False  # whether its faces wait for the networks, or are done
    writing: Future[Record] | None = None
    done: Record | None = None
    error: BaseException | None = None
    seconds: float = 0.0

    @property
    def bytes(self) -> int:
        return len(self.prepared.content) if self.prepared is not None else 0


class _Run:
    """Moves inputs through reading, sampling and writing; the arguments are those of `restore_files`."""

    def __init__(
        self,
        pipeline: FacePriorPipeline,
        detector: FaceDetector | None,
        output: Place,
        options: RestoreOptions,
        manifest: Manifest | None,
        watcher: Watcher,
    ) -> None:
        self._pipeline, self._detector, self._output, self._options = pipeline, detector, output, options
        self._manifest, self._watcher, self._made = manifest, watcher, how_made(pipeline, options)
        self._todo: Iterator[_Item] = iter(())
        self._items = deque[_Item]()  # under way, in order
        self._waiting = deque[tuple[_Item, Condition | None]]()  # for the networks; a clip has no condition
        self._records = deque[Record]()
        self._readers = ThreadPoolExecutor(_READERS, "faceprior-read")
        self._writer = ThreadPoolExecutor(1, "faceprior-write")

    def run(self, inputs: Sequence[Input], names: Sequence[str]) -> Iterator[Record]:
        """Restore inputs, whose results have these names, and yield the record of each, in order."""
        find = self._manifest.find if self._manifest is not None else lambda _path: None
        self._todo = (_Item(given, name, find(given.path)) for given, name in zip(inputs, names, strict=True))
        try:
            self._read_ahead()
            while self._items:
                self._take_what_is_read()
                if not self._sample() and not self._records:
                    self._wait()
                self._note_written()
                self._read_ahead()
                while self._records:
                    yield self._records.popleft()
        finally:
            self._readers.shutdown(cancel_futures=True)
            self._writer.shutdown(cancel_futures=True)
            self._note_written()  # a run that is stopped keeps what it has finished

    def _wait(self) -> None:
        futures: list[Future[Any] | None] = [own for item in self._items for own in (item.reading, item.writing)]
        wait([own for own in futures if own is not None and not own.done()], return_when=FIRST_COMPLETED)

    def _stepped(self, _step: Step, x0: torch.Tensor, _faces: Sequence[int]) -> None:
        self._watcher.on_step(len(x0))
        self._note_written()
        self._read_ahead()

    # --- reading

    def _read_ahead(self) -> None:
        """Begin to read the next pictures, unless enough are under way."""
        while self._wants_more():
            item = next(self._todo, None)
            if item is None:
                return
            if item.earlier is None and not is_clip(item.given.path.name):
                item.reading = self._readers.submit(self._read, item)
            self._items.append(item)

    def _wants_more(self) -> bool:
        untaken = sum(not item.taken for item in self._items)
        being_read = sum(item.reading is not None and not item.reading.done() for item in self._items)
        behind = sum(item.writing is not None for item in self._items)
        held = sum(item.bytes for item in self._items)
        enough = _READERS + 2 * faces_at_once(self._pipeline, self._options)
        return being_read <= _READERS and untaken < enough and behind <= _PICTURES_BEHIND and held < MAX_BYTES_HELD

    def _read(self, item: _Item) -> Prepared:
        """Read a picture and find its faces; on a thread of the readers."""
        started, given = time.perf_counter(), item.given
        item.stamp = stamp_of(given)  # before it is read: it may change meanwhile
        card = self._pipeline.prior.card
        item.prepared = prepare(read(given.path), given.path.name, card, self._options, self._detector)
        item.seconds += time.perf_counter() - started
        return item.prepared

    def _take_what_is_read(self) -> None:
        """Let the faces of pictures that are read wait for the networks, in order."""
        for item in self._items:
            if item.taken:
                continue
            if item.reading is not None and not item.reading.done():
                return
            item.taken = True
            conditions: Sequence[Condition | None] = ()
            if item.reading is not None:
                item.error = item.reading.exception()
                conditions = item.prepared.conditions if item.prepared is not None else ()
                self._watcher.on_faces(len(conditions))
            elif item.earlier is None:
                conditions = [None]
            else:
                self._watcher.on_faces(0)
            item.reading, item.missing = None, len(conditions)
            self._waiting.extend((item, condition) for condition in conditions)
            self._write_if_restored(item)

    # --- sampling

    def _sample(self) -> bool:
        """Take a batch of faces, or a clip, through the networks; False where it is better to wait for more."""
        waiting, at_once = self._waiting, faces_at_once(self._pipeline, self._options)
        reading = any(not item.taken for item in self._items)
        if not waiting or (reading and len(waiting) < at_once and waiting[0][1] is not None):
            return False
        if waiting[0][1] is None:
            self._restore_clip(waiting.popleft()[0])
            return True
        started = time.perf_counter()
        batch = list[tuple[_Item, Condition]]()
        for item, condition in islice(waiting, at_once):
            if condition is None:
                break
            batch.append((item, condition))
        for _ in batch:
            waiting.popleft()
        conditions = [condition for _, condition in batch]
        results = restore(self._pipeline, conditions, self._options, self._stepped, self._watcher.on_notice)
        doubts = doubts_of(self._pipeline, conditions, results)
        seconds = (time.perf_counter() - started) / len(batch)
        for (item, _), result, doubt in zip(batch, results, doubts, strict=True):
            item.seconds += seconds
            item.samples.append(result)
            item.doubt.append(doubt)
            item.missing -= 1
            self._write_if_restored(item)
        return True

    def _restore_clip(self, item: _Item) -> None:
        try:
            item.done = self._clip_record(item)
        except Exception as error:  # noqa: BLE001 - it fails alone, and is said
            item.error = error
        item.missing = 0
        self._watcher.on_faces(0)

    def _clip_record(self, item: _Item) -> Record:
        from faceprior.clips.restore import restore_clip

        path = item.given.path
        item.stamp = stamp_of(item.given)
        if self._detector is None:
            raise OptionError("is a clip, whose faces must be found, and --aligned looks for none; leave it out")
        target = self._output / f"{item.name}{output_suffix(path.name, self._options.ending)}"
        make_folder(target.parent)

        with as_file(path) as clip, as_file(target, written=True) as restored:

            def on_frame(stage: str, frames: int) -> None:
                self._watcher.on_frame(clip, stage, frames)
                self._note_written()

            record = restore_clip(self._pipeline, clip, restored, self._options, self._detector, on_frame)
            outputs = [about_file(restored, target, self._output)]
        return {"name": item.name, **record, "outputs": outputs}

    # --- writing

    def _write_if_restored(self, item: _Item) -> None:
        if item.missing == 0 and item.prepared is not None and item.error is None:
            item.writing = self._writer.submit(self._write, item, item.prepared)

    def _write(self, item: _Item, prepared: Prepared) -> Record:
        """Compose and write the results; on the writer's thread."""
        started = time.perf_counter()
        composed = compose(prepared, item.samples, self._made, self._options, item.doubt)
        outputs = write_results(composed, self._output, item.name, item.given.path)
        seconds = item.seconds + time.perf_counter() - started
        return {"name": item.name, **composed.record, "outputs": outputs, "seconds": round(seconds, 3)}

    def _note_written(self) -> None:
        """Put down what is finished, in order."""
        while self._items and self._items[0].taken and self._items[0].missing == 0:
            item = self._items[0]
            if item.writing is not None and (item.writing.cancelled() or not item.writing.done()):
                return
            record = _record(item)
            self._items.popleft()
            self._records.append(record)
            if item.earlier is None and self._manifest is not None:
                self._manifest.append(record)


def stamp_of(given: Input) -> dict[str, int]:
    """Return what tells whether an input has changed; raises ImageError where there is none."""
    if given.problem is not None:
        raise ImageError(given.problem)
    try:
        return given.stamp or stamp(given.path)
    except OSError as error:
        raise unreadable(given.path, error) from error


def _record(item: _Item) -> Record:
    if item.earlier is not None:
        return {**item.earlier, "earlier": True}
    error = item.error or (item.writing.exception() if item.writing is not None else None)
    record: Record = {"input": str(item.given.path)}
    if error is not None:
        return {**record, "status": "failed", "error": failure(item.given.path, error)}
    done = item.writing.result() if item.writing is not None else item.done or {}
    return {**record, "status": "done", "file": item.stamp, **done}


def failure(path: Place, error: BaseException) -> str:
    """Return what a record says of an input that failed."""
    if isinstance(error, OutputError) and not str(error).startswith((f"{path.name}: ", "picture: ")):
        return str(error)  # which names the result
    if isinstance(error, FacePriorError):
        text = str(error).removeprefix("picture: ")
    elif is_out_of_memory(error):
        text = "does not fit into the memory; reduce the picture, or close other programs"
    else:
        text = f"stopped by what should not happen ({type(error).__name__}: {error}); please report it"
    return text if text.startswith(str(path)) else f"{path}: {text.removeprefix(f'{path.name}: ')}"
