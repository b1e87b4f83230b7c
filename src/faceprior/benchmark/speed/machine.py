"""The machine that a figure was measured on: without it the figure means nothing."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Machine:
    """What decides a speed besides the program.

    Attributes:
        cpu: model of the processor.
        features: what of it torch's kernels go by ("AVX512", ...).
        cores: that this process may use.
        threads: of torch.
        memory_gb: of the machine, in 10⁹ bytes; None where the system does not tell.
        gpu: model of the CUDA device; "" without one.
        system: operating system and its release.
        python: version.
        torch: version.
        load: processes that were running or waiting over the last minute, this one included; None where the system
            does not tell.
    """

    cpu: str
    features: str
    cores: int
    threads: int
    memory_gb: float | None
    gpu: str
    system: str
    python: str
    torch: str
    load: float | None

    def __str__(self) -> str:
        parts = [
            f"{self.cpu} ({self.features})",
            f"{self.cores} cores, {self.threads} threads",
            *([f"{self.memory_gb:.0f} GB"] if self.memory_gb else []),
            *([self.gpu] if self.gpu else ["no GPU"]),
            f"{self.system}, Python {self.python}, torch {self.torch}",
            *([f"load {self.load:.1f}"] if self.load is not None else []),
        ]
        return "; ".join(parts)


def this_machine() -> Machine:
    """Describe the machine as it is now."""
    return Machine(
        cpu=_cpu_model(),
        features=torch.backends.cpu.get_cpu_capability() + ("+BF16" if _has_bfloat16() else ""),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        memory_gb=_memory(),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        system=f"{platform.system()} {platform.release().split('-')[0]}",
        python=platform.python_version(),
        torch=str(torch.__version__),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    )


def _has_bfloat16() -> bool:
    from faceprior.devices import choose_dtype

    return choose_dtype("auto", torch.device("cpu")) is torch.bfloat16


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    if platform.system() == "Darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed command
        if found.returncode == 0:
            return found.stdout.strip()
    return platform.processor() or platform.machine()


def _memory() -> float | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (AttributeError, OSError, ValueError):
        return None
