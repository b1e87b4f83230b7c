"""Clips on the command line of `faceprior restore`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from faceprior.cli.console import console, errors, progress_bar, say

if TYPE_CHECKING:
    from faceprior.faces import FaceDetector
    from faceprior.photographs import RestoreOptions
    from faceprior.pipeline import FacePriorPipeline


def restore_clips(
    pipeline: FacePriorPipeline, clips: Sequence[Path], output: Path, options: RestoreOptions, detector: FaceDetector
) -> int:
    """Restore clips into a folder, a line for each; returns how many failed.

    Raises:
        OutputError: the folder cannot be made.
        FacePriorError: PyAV is not installed.
    """
    from faceprior.clips import frame_count, load_av
    from faceprior.clips.restore import restore_video
    from faceprior.errors import FacePriorError, OutputError

    load_av()  # if it is not there, that is said once
    failed = 0
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{output}: cannot be made ({error.strerror}); choose another --output") from error
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    for clip, target in zip(clips, _targets(clips, output), strict=True):
        with progress_bar(*columns) as bar:
            try:
                frames = frame_count(clip) or None
                record = restore_video(pipeline, clip, target, options, detector, _shown(bar, clip, frames))
            except FacePriorError as error:
                failed += 1
                say(errors, str(error), label="failed")
            else:
                say(console, _summary(record))
    return failed


def _shown(bar: Progress, clip: Path, frames: int | None) -> Callable[[str, int], None]:
    tasks = {stage: bar.add_task(f"{clip.name}: {stage}", total=frames) for stage in ("finding", "restoring")}
    return lambda stage, done: bar.update(tasks[stage], completed=done)


def _targets(clips: Sequence[Path], output: Path) -> list[Path]:
    """Where the results go: never onto an input, never onto each other."""
    from faceprior.clips import output_suffix

    taken = {os.path.realpath(clip) for clip in clips}
    targets = []
    for clip in clips:
        stems = chain([clip.stem], (f"{clip.stem}-{number}" for number in count(2)))
        candidates = (output / f"{stem}{output_suffix(clip)}" for stem in stems)
        target = next(candidate for candidate in candidates if os.path.realpath(candidate) not in taken)
        taken.add(os.path.realpath(target))
        targets.append(target)
    return targets


def _summary(record: dict[str, Any]) -> str:
    faces, frames = record["faces"], record["frames"]
    what = f"{faces} face{'s' * (faces != 1)} in {frames} frames, {record['restored']} times restored"
    return f"{record['input']} → {record['output']}  ({', '.join([what, *record['notes']])})"
