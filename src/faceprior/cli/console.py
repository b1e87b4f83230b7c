"""What commands print: results on standard output, bars and errors on standard error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from typer.core import TyperGroup

from faceprior.errors import FacePriorError

EXIT_USAGE, EXIT_SOME_FAILED, EXIT_STOPPED = 2, 3, 130

console = Console()
errors = Console(stderr=True)


def say(target: Console, text: str, *, label: str = "") -> None:
    """Print one line, after a red label; a file name in it is neither markup nor control codes."""
    printable = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    words = [(f"{label} ", "red"), printable] if label else [printable]
    if target.is_terminal and errors.is_terminal:
        target = errors  # the console of a bar, which then stays below the line
    target.print(Text.assemble(*words), soft_wrap=True, highlight=False)


def end_with(problems: Sequence[str], label: str) -> None:
    """Say what went wrong; if anything did, the command ends, with the code for that."""
    for problem in problems:
        say(errors, problem, label=label)
    if problems:
        raise typer.Exit(EXIT_SOME_FAILED)


def progress_bar() -> Progress:
    """Return a bar on standard error; nothing is drawn where that is not a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal)


class Commands(TyperGroup):
    """Commands whose errors are one line without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            if not error.message:  # there is no value at all
                raise
            say(errors, _said(error), label="error")
            raise typer.Exit(EXIT_USAGE) from error
        except FacePriorError as error:
            say(errors, str(error), label="error")
            raise typer.Exit(EXIT_USAGE) from error
        except BrokenPipeError:
            raise
        except OSError as error:
            named = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            say(errors, f"{named}; check the name and the space on the disk", label="error")
            raise typer.Exit(EXIT_USAGE) from error
        except KeyboardInterrupt as error:
            say(errors, "stopped")
            raise typer.Exit(EXIT_STOPPED) from error


def _said(error: typer.BadParameter) -> str:
    """One line of a value that an option cannot have, without the words of the library that found out."""
    from pydantic import ValidationError

    from faceprior.settings import explained

    names = getattr(error.param, "opts", None) or [error.param_hint or "a value"]
    name = names[0] if names[0].startswith("-") else str(getattr(error.param, "human_readable_name", names[0]))
    if isinstance(error.__cause__, ValidationError):
        problem = error.__cause__.errors()[0]
        if problem["type"] != "value_error":
            return explained({**problem, "loc": (name,)})
    return f"{name}: {error.message.removeprefix('Value error, ')}"
