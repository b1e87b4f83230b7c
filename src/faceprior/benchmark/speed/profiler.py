"""Which operations a case spends its time on, and what bounds it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch

_KINDS = {  # the first that fits: "normal" has "norm" in it
    "random numbers": ("normal", "randn", "rand", "uniform", "random"),
    "matrix products": ("conv", "mm", "bmm", "addmm", "baddbmm", "matmul", "linear", "attention", "einsum"),
    "norms": ("norm", "var", "mean", "moments"),
    "moving data": ("copy", "cat", "to", "contiguous", "clone", "fill", "zero", "index", "upsample", "pad", "stack"),
}
_OTHERS = "elementwise and the rest"

BOUND_BY = {
    "matrix products": "arithmetic",
    "norms": "memory: norms read and write whole feature maps for little arithmetic",
    "moving data": "memory: copies between layouts and number formats",
    "random numbers": "the drawing of noise",
    _OTHERS: "memory and calls: elementwise operations read and write whole feature maps for little arithmetic",
}
"""What a case is bound by whose largest share is of a kind."""


@dataclass(frozen=True)
class Operation:
    """An operation of torch, without those that it calls.

    Attributes:
        name: torch's.
        kind: key of `BOUND_BY`.
        calls: number of them.
        seconds: of all calls, on the device.
        share: of the time of all operations, 0 to 1.
    """

    name: str
    kind: str
    calls: int
    seconds: float
    share: float


def profile(work: Callable[[], object], device: torch.device) -> list[Operation]:
    """Run something once under torch's profiler; returns its operations, the longest first."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    on_gpu = device.type == "cuda"
    if on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as found:
        work()
    own = {
        event.key: (event.count, (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6)
        for event in found.key_averages()
        if event.key.startswith(("aten::", "mkldnn::"))  # on a GPU kernels are listed too, under their operations
    }
    total = sum(seconds for _, seconds in own.values()) or 1.0
    operations = [
        Operation(name, kind_of(name), calls, seconds, seconds / total) for name, (calls, seconds) in own.items()
    ]
    return sorted(operations, key=lambda operation: -operation.seconds)


def kind_of(name: str) -> str:
    """Return what kind of operation torch's name stands for, a key of `BOUND_BY`."""
    plain = name.rsplit("::", maxsplit=1)[-1].strip("_")
    words = set(plain.split("_"))
    for kind, parts in _KINDS.items():
        if words & set(parts) or any(len(part) > 3 and part in plain for part in parts):
            return kind
    return _OTHERS


def by_kind(operations: list[Operation]) -> dict[str, float]:
    """Share of the time of each kind, the largest first."""
    shares = defaultdict[str, float](float)
    for operation in operations:
        shares[operation.kind] += operation.share
    return dict(sorted(shares.items(), key=lambda item: -item[1]))
