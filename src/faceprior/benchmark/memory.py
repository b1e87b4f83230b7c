"""How much memory a piece of work needs."""

from __future__ import annotations

from pathlib import Path

import torch


class PeakMemory:
    """Peak from now on: of the device's memory on CUDA, else of the process (Linux only)."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._known = device, device.type == "cuda"
        if self._known:
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:  # proc(5), clear_refs: the peak starts again from what is in use
            self._known = bool(Path("/proc/self/clear_refs").write_text("5", encoding="ascii"))
        except OSError:
            return

    def megabytes(self) -> float | None:
        """Return the peak in MB (10⁶ bytes); None where the system does not tell."""
        if not self._known:
            return None
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / 1e6
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:")), None)
