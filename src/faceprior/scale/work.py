"""What the machines of a cluster do with photographs: prepare and compose on CPUs, restore where the networks are.

Nothing here knows of Ray. A process that a photograph ends is the driver's affair; what a photograph can be blamed
for comes back as a value.
"""

from __future__ import annotations

import faulthandler
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from faceprior.clips.container import is_clip
from faceprior.devices import is_out_of_memory
from faceprior.errors import FacePriorError, ImageError, OptionError, OutputError, UnreachableError
from faceprior.faces import FaceDetector
from faceprior.folders.manifest import Record
from faceprior.folders.outputs import write_results
from faceprior.folders.run import failure, stamp_of
from faceprior.photographs import Condition, Prepared, RestoreOptions, compose, how_made, prepare
from faceprior.photographs.options import settings
from faceprior.photographs.restore import doubts_of, faces_at_once, restore
from faceprior.pipeline.face_prior import FacePriorPipeline, Samples
from faceprior.priors import ModelCard
from faceprior.scale.listing import Photograph
from faceprior.storage import Place, read

Restored = list[tuple[Samples | FacePriorError, torch.Tensor | None]]
"""Of each face of a photograph its samples, and its doubt."""


@dataclass(frozen=True)
class ScaleOptions:
    """How a run uses a cluster.

    Attributes:
        parts: into which the listing is divided.
        tries: after which a photograph that ends processes, or cannot be read or written, is given up; at least 2.
        timeout: seconds for each step of a photograph.
        gpus: share of a GPU for the networks, 0 for a CPU; None takes a whole one if the cluster has some.

    Raises:
        OptionError: one is out of its range.
    """

    parts: int = 2000
    tries: int = 3
    timeout: float = 120.0
    gpus: float | None = None

    def __post_init__(self) -> None:
        if self.parts < 1 or self.tries < 2 or self.timeout <= 0:
            raise OptionError("--ray-option: parts must be at least 1, tries at least 2, and timeout above 0")
        if self.gpus is not None and not 0 <= self.gpus <= 64:
            raise OptionError(f"--ray-option gpus is {self.gpus:g}; choose a number from 0 to 64")


@dataclass(frozen=True)
class Job:
    """What all machines are told.

    Attributes:
        output: folder of the results.
        options: how photographs are restored.
        scale: how a cluster is used.
        find_detector: loads the detector; returns None where every photograph is an aligned face.
        load_pipeline: loads the networks, onto the device that its machine has.
        name: of the run, its own.
    """

    output: Place
    options: RestoreOptions
    scale: ScaleOptions
    find_detector: Callable[[], FaceDetector | None]
    load_pipeline: Callable[[], FacePriorPipeline]
    name: str = field(default_factory=partial(secrets.token_hex, 8))


@dataclass(frozen=True)
class About:
    """What the networks say of themselves, for those who work without."""

    card: ModelCard
    made: dict[str, Any]
    settings: dict[str, Any]
    faces_at_once: int


@dataclass(frozen=True)
class Stage:
    """How far a photograph came."""

    record: Record | None = None  # what became of it, if it is finished
    faces: int = 0  # that are to be restored
    bytes: int = 0  # of its file
    stamp: dict[str, int] | None = None  # of its file
    seconds: float = 0.0  # that it took


def prepare_photograph(
    job: Job, card: ModelCard, photograph: Photograph
) -> tuple[Stage, tuple[Condition, ...], Prepared | None]:
    """Read a photograph and find its faces; `compose_photograph` wants the last that is returned."""
    started, given = time.perf_counter(), photograph.given
    if is_clip(given.path.name):
        return Stage(_failed(photograph, ImageError(f"{given.path}: is a clip; restore it without --ray"))), (), None
    try:
        with _limited(job.scale.timeout):
            stamp = stamp_of(given)
            content = read(given.path)
            prepared = prepare(content, given.path.name, card, job.options, _detector(job))
    except Exception as error:  # noqa: BLE001 - it fails alone, and is said
        return Stage(_failed(photograph, error)), (), None
    seconds = time.perf_counter() - started
    stage = Stage(None, len(prepared.conditions), len(content), stamp, seconds)
    return stage, prepared.conditions, prepared


def compose_photograph(
    job: Job, made: dict[str, Any], photograph: Photograph, before: Stage, prepared: Prepared, restored: Restored
) -> Record:
    """Put the faces of a photograph back into it, write the results, and return the record."""
    started, given = time.perf_counter(), photograph.given
    try:
        with _limited(job.scale.timeout):
            samples, doubt = [own for own, _ in restored], [own for _, own in restored]
            composed = compose(prepared, samples, made, job.options, doubt)
            outputs = write_results(composed, job.output, photograph.name, given.path)
    except Exception as error:  # noqa: BLE001 - it fails alone, and is said
        return _failed(photograph, error)
    seconds = round(before.seconds + time.perf_counter() - started, 3)
    record = {"input": photograph.input, "status": "done", "file": before.stamp, "name": photograph.name}
    return {**record, **composed.record, "outputs": outputs, "seconds": seconds}


class Restorer:
    """Holds the networks, which its job loads."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def about(self) -> About:
        """Load them, and say what they are; raises FacePriorError where they cannot work as they are told to."""
        pipeline, options = self._job.load_pipeline(), self._job.options
        pipeline.check(options.preset)
        self._pipeline = pipeline
        detector = self._job.find_detector()
        own = settings(pipeline, options, detector.name if detector else None)
        return About(pipeline.prior.card, how_made(pipeline, options), own, faces_at_once(pipeline, options))

    def restore(self, *photographs: Sequence[Condition]) -> tuple[Restored | None, ...]:
        """Restore the faces of several photographs together; the None in front of them says that it is done."""
        conditions = [condition for own in photographs for condition in own]
        with _limited(self._job.scale.timeout * len(photographs)):
            samples = self._restored(conditions)
            faces = iter(zip(samples, doubts_of(self._pipeline, conditions, samples), strict=True))
        return None, *([next(faces) for _ in own] for own in photographs)

    def _restored(self, conditions: Sequence[Condition]) -> list[Samples | FacePriorError]:
        try:
            return restore(self._pipeline, conditions, self._job.options)
        except RuntimeError as error:
            if self._pipeline.prior.device.type == "cuda":  # its context may be broken: another begins anew
                print(f"faceprior: this process ends, for {error}", file=sys.stderr)  # noqa: T201 - into Ray's log
                sys.stderr.flush()
                os._exit(1)
            raise


_DETECTORS = dict[str, FaceDetector | None]()  # of this process, by the name of the run


class _TooLongError(FacePriorError, TimeoutError):
    pass


def _detector(job: Job) -> FaceDetector | None:
    if job.name not in _DETECTORS:
        _DETECTORS.clear()
        _DETECTORS[job.name] = job.find_detector()
    return _DETECTORS[job.name]


def _failed(photograph: Photograph, error: BaseException) -> Record:
    """The record of a failure; one that may not come again the next time has "again"."""
    again = isinstance(error, OutputError | UnreachableError | _TooLongError) or is_out_of_memory(error)
    record: Record = {"input": photograph.input, "status": "failed", "error": failure(photograph.given.path, error)}
    return {**record, "again": True} if again else record


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Stop what takes too long: by an error where Python can be reached, else by the end of the process."""
    late = _TooLongError(f"took longer than {seconds:g} seconds; allow more with --ray-option timeout=N")
    stopped = False

    def stop(_signal: int, _frame: object) -> None:
        nonlocal stopped
        stopped = True
        raise late

    main = threading.current_thread() is threading.main_thread()
    faulthandler.dump_traceback_later(2 * seconds + 5, exit=True)
    before = signal.signal(signal.SIGALRM, stop) if main else None
    try:
        if main:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    except Exception as error:
        if stopped and error is not late:
            raise late from error  # a decoder takes whatever happens to it for a damaged file
        raise
    finally:
        if main:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()
