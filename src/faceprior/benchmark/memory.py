"""How much memory a piece of work needs."""

from __future__ import annotations

from pathlib import Path

import torch

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_RESET_PEAK = "5"  # proc(5), clear_refs: the peak starts again from what is in use


class PeakMemory:
    """Peak from now on: of the device's memory on CUDA, else of the process (Linux only).

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            try:
                _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
                self._known = True
            except OSError:
                self._known = False

    def megabytes(self) -> float | None:
        """Return the peak in MB (10⁶ bytes); None where the system does not tell."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / 1e6
        if not self._known:
            return None
        lines = _STATUS.read_text(encoding="ascii").splitlines()
        return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:")), None)
