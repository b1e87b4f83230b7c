"""faceprior in a process of its own: what a cold start costs, and how much memory a run takes."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from faceprior.errors import FacePriorError

IMPORT = "import faceprior"
LOAD = "from faceprior import FacePriorPipeline; FacePriorPipeline.from_pretrained()"

_CHILD = """
import json, sys, time
program, report = sys.argv[1:]
start = time.perf_counter()
try:
    exec(open(program, encoding="utf-8").read())
except SystemExit as stop:
    if stop.code:
        raise
finally:
    seconds = time.perf_counter() - start
    try:
        lines = open("/proc/self/status", encoding="ascii").read().splitlines()
        peak = next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        peak = None
    with open(report, "w", encoding="ascii") as file:
        json.dump({"seconds": seconds, "cpu_seconds": time.process_time(), "peak_memory_mb": peak}, file)
"""


@dataclass(frozen=True)
class ProcessRun:
    """A program that ran in a process of its own.

    Attributes:
        seconds: of the statements alone.
        process_seconds: from the start of the process to its end, the interpreter included.
        cpu_seconds: processor time of the process: unlike the others it hardly depends on what else runs.
        peak_memory_mb: peak of the resident memory in 10⁶ bytes; None where the system does not tell.
    """

    seconds: float
    process_seconds: float
    cpu_seconds: float
    peak_memory_mb: float | None


def run_statements(statements: str) -> ProcessRun:
    """Run Python statements in a new process of this interpreter.

    Raises:
        FacePriorError: they failed; the message holds the end of what they printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        report, program = Path(folder) / "report.json", Path(folder) / "program.py"
        program.write_text(statements, encoding="utf-8")  # thousands of file names do not fit into an argument
        command = [sys.executable, "-c", _CHILD, str(program), str(report)]
        start = time.perf_counter()
        found = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - this interpreter
        process_seconds = time.perf_counter() - start
        if found.returncode:
            said = (found.stderr.strip() or found.stdout.strip())[-500:]
            raise FacePriorError(f"{statements.splitlines()[0]}: failed in a process of its own ({said})")
        return ProcessRun(process_seconds=process_seconds, **json.loads(report.read_text(encoding="ascii")))


def run_command(arguments: Sequence[str]) -> ProcessRun:
    """Run a command line of faceprior in a new process, as `faceprior ARGUMENTS` does."""
    return run_statements(
        f"import sys; from faceprior.cli import main; sys.argv = {['faceprior', *arguments]}; main()"
    )
