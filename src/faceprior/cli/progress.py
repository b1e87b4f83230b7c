"""How far the restoring of files is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import Progress, TaskID

from faceprior.cli.console import errors, progress_bar, say

_EVERY = 60.0  # seconds between plain lines


class RestoreProgress:
    """Looks on while files are restored: a bar, or plain lines where there is no terminal.

    The bar stands at one face for each input, of so many steps for all its samples together; where it is quiet, only
    notices are told. The clock counts seconds.
    """

    def __init__(
        self, bar: Progress, inputs: int, steps_each: int, *, quiet: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._bar, self._inputs, self._steps_each, self._clock = bar, inputs, steps_each, clock
        self._plain = bar.disable and not quiet
        self._task = bar.add_task("restoring", total=inputs * steps_each)
        self._clips = dict[tuple[Path, str], TaskID]()
        self._done, self._said = 0, clock()

    @property
    def so_far(self) -> str:
        """How many inputs are finished, "3 of 8"."""
        return f"{self._done} of {self._inputs}"

    def on_inputs(self, inputs: int) -> None:
        """It is known how many inputs there are."""
        self._inputs = inputs
        self._bar.update(self._task, total=inputs * self._steps_each)

    def on_faces(self, faces: int) -> None:
        """An input turned out to have so many faces to restore."""
        total = self._bar.tasks[0].total or 0
        self._bar.update(self._task, total=total + (faces - 1) * self._steps_each)

    def on_step(self, samples: int) -> None:
        """A step is done for so many samples."""
        self._bar.advance(self._task, samples)
        self._say()

    def on_frame(self, clip: Path, stage: str, frames: int) -> None:
        """So many frames of a clip are done with a stage."""
        from faceprior.clips.container import frame_count

        if (clip, stage) not in self._clips:
            self._clips[clip, stage] = self._bar.add_task(f"{clip.name}: {stage}", total=frame_count(clip) or None)
        self._bar.update(self._clips[clip, stage], completed=frames)
        self._say(f", {clip.name}: {stage}, frame {frames}")

    def on_input(self) -> None:
        """An input is finished."""
        self._done += 1
        self._say()

    def on_notice(self, text: str) -> None:
        """Tell the user."""
        say(errors, text)

    def _say(self, more: str = "") -> None:
        now = self._clock()
        if self._plain and now >= self._said + _EVERY:
            self._said = now
            say(errors, f"{self.so_far} done{more}")


@contextmanager
def restore_progress(inputs: int, steps_each: int, *, quiet: bool) -> Iterator[RestoreProgress]:
    """Show how far the restoring of files is."""
    with progress_bar() as bar:
        yield RestoreProgress(bar, inputs, steps_each, quiet=quiet)
