"""`faceprior serve` in a process of its own, for tests."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

EXAMPLE = Path(__file__).parents[1] / "src/faceprior/app/page/example.webp"


@dataclass(frozen=True)
class Served:
    """A server that answers."""

    address: str
    process: subprocess.Popen
    temporary: Path

    @property
    def megabytes(self):
        return psutil.Process(self.process.pid).memory_info().rss / 1e6

    @property
    def seconds(self):
        """Processor time that it has taken so far."""
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def falls_idle(self):
        """Whether it stops to compute: a sampler at work takes all of a core, or its share of a busy one."""

        def rests():
            before = self.seconds
            time.sleep(2)
            return self.seconds - before < 0.3

        return comes_true(rests)

    def files(self):
        return [path for path in self.temporary.rglob("*") if path.is_file()]


@contextmanager
def serving(temporary, *options, ended_by=signal.SIGINT):
    """Serve the embedded prior on a free port; its temporary files lie in `temporary`, until a signal ends it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "faceprior", "serve", "--port", str(port), *options]
    environment = {**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(  # noqa: S603 - our own server
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 300
        while not answers(f"{address}/healthz"):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise AssertionError(process.communicate()[0])
            time.sleep(0.2)
        yield Served(address, process, Path(temporary))
    finally:
        process.send_signal(ended_by)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def comes_true(condition, seconds=90):
    """Whether a condition holds, at once or before so many seconds have gone by."""
    deadline = time.monotonic() + seconds
    while not (holds := condition()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return holds


def answers(address):
    try:
        return httpx.get(address, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False
