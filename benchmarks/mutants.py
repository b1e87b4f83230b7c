"""How many of mutmut's small changes of the core's code the tests notice: python -m benchmarks.mutants."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from benchmarks.common import show

_UNNOTICED = (0, 33)  # mutmut's exit codes of a mutant that all tests pass, and of one that no test runs


def main(
    folder: Annotated[Path, typer.Option(help="Where mutmut has left its results.")] = Path("mutants/src"),
    least: Annotated[float, typer.Option(help="Percent that must be noticed in all.")] = 90.0,
) -> None:
    """Print the score of each module that was run, and of all; exit with 1 where that is too low."""
    rows, changes, noticed = [], 0, 0
    for path in sorted(folder.rglob("*.meta")):
        codes = json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"].values()
        tried = [code for code in codes if code is not None]
        if not tried:
            continue
        killed = sum(code not in _UNNOTICED for code in tried)
        changes, noticed = changes + len(tried), noticed + killed
        rows.append((str(path.relative_to(folder).with_suffix("")), f"{len(tried)}", _percent(killed, len(tried))))
    if not rows:
        raise typer.BadParameter(f"{folder} has no results; run `make mutants` first")
    show(
        "Changes that the tests notice",
        ("module", "changes", "%"),
        [*rows, ("all", f"{changes}", _percent(noticed, changes))],
    )
    if 100 * noticed < least * changes:
        raise typer.Exit(1)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f}"


if __name__ == "__main__":
    typer.run(main)
