"""Progress bars over images and steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from faceprior.cli.console import errors, progress_bar, say


class StepsProgress:
    """Counts faces × steps."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, faces: int = 1) -> None:
        """A step is done for so many faces."""
        self._progress.advance(self._task, faces)

    def expect(self, steps: int) -> None:
        """So many steps more, or fewer, than it was thought will happen."""
        total = self._progress.tasks[0].total or 0
        self._progress.update(self._task, total=total + steps)


class RestoreProgress:
    """A bar over the steps of files whose faces are counted as they are read: a watcher of `restore_files`.

    Args:
        progress: the bar, which stands at one face for each file.
        steps_each: steps for a face, all its samples together.
    """

    def __init__(self, progress: StepsProgress, steps_each: int) -> None:
        self._progress, self._steps_each = progress, steps_each

    def on_faces(self, faces: int) -> None:
        """An input turned out to have so many faces to restore."""
        self._progress.expect((faces - 1) * self._steps_each)

    def on_step(self, samples: int) -> None:
        """A step is done for so many samples."""
        self._progress.advance(samples)

    def on_notice(self, text: str) -> None:
        """Tell the user."""
        say(errors, text)


@contextmanager
def steps_progress(total: int) -> Iterator[StepsProgress]:
    """Show a bar while restoring."""
    columns = (TextColumn("restoring"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeRemainingColumn())
    with progress_bar(*columns) as progress:
        yield StepsProgress(progress, progress.add_task("restoring", total=total))


@contextmanager
def faces_progress(total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar while measuring faces; yields what is called with the number of faces just done."""
    columns = (TextColumn("evaluating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with progress_bar(*columns) as progress:
        task = progress.add_task("evaluating", total=total)
        yield lambda done: progress.advance(task, done)
