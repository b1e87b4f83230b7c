"""Time on the device that does the work, and the time that is spent inside the networks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


class Clock(Protocol):
    """Marks points in the device's work and tells the time between two of them."""

    def mark(self) -> Any:
        """Return this point in the device's work, without stopping it where the device allows that."""

    def seconds(self, start: Any, end: Any) -> float:
        """Return the time between two marks; waits until the device has passed them."""


@dataclass(frozen=True)
class HostClock:
    """The processor's clock.

    Attributes:
        now: seconds since any fixed point.
        wait: waits for the device first, where work is only queued and the device has no clock of its own.
    """

    now: Callable[[], float] = time.perf_counter
    wait: Callable[[], object] = lambda: None

    def mark(self) -> float:
        """Return the time."""
        self.wait()
        return self.now()

    def seconds(self, start: float, end: float) -> float:
        """Return the difference."""
        return end - start


class CudaClock:
    """Events in the GPU's own stream: marking does not stop the host, so gaps that the host leaves are seen."""

    def mark(self) -> torch.cuda.Event:
        """Record an event."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Wait for the later event and return the GPU's time between both."""
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def clock_of(device: torch.device) -> Clock:
    """Return the clock of a device."""
    if device.type == "cuda":
        return CudaClock()
    if device.type == "mps":
        return HostClock(wait=torch.mps.synchronize)
    return HostClock()


class NetworkTimes:
    """Measures every call of some networks, and gradients that are taken through them, until it is stopped.

    Args:
        networks: by name.
        clock: of the device that they are on.

    Attributes:
        images: images that each network was given, however many at a time.
    """

    def __init__(self, networks: Mapping[str, nn.Module], clock: Clock) -> None:
        self._clock = clock
        self._handles: list[RemovableHandle] = []
        self._spans: dict[str, list[tuple[Any, Any]]] = {name: [] for name in networks}
        self.images = dict.fromkeys(networks, 0)
        for name, network in networks.items():
            self._watch(name, network)

    def stop(self) -> None:
        """Let the networks go; what was measured stays."""
        while self._handles:
            self._handles.pop().remove()

    def seconds(self) -> dict[str, float]:
        """Return the time inside each network."""
        return {
            name: sum(self._clock.seconds(start, end) for start, end in spans) for name, spans in self._spans.items()
        }

    def _watch(self, name: str, network: nn.Module) -> None:
        started: list[Any] = []

        def begin(_network: nn.Module, inputs: tuple[Any, ...]) -> None:
            self.images[name] += len(inputs[0])
            started.append(self._clock.mark())

        def end(_network: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self._spans[name].append((started.pop(), self._clock.mark()))
            estimate = getattr(output, "sample", output)
            if isinstance(estimate, torch.Tensor) and estimate.requires_grad:
                self._watch_gradient(name, estimate, inputs[0])

        self._handles += [network.register_forward_pre_hook(begin), network.register_forward_hook(end)]

    def _watch_gradient(self, name: str, output: torch.Tensor, entry: torch.Tensor) -> None:
        started: list[Any] = []
        output.register_hook(lambda _: started.append(self._clock.mark()))
        entry.register_hook(lambda _: self._spans[name].append((started.pop(), self._clock.mark())))


@contextmanager
def time_inside(networks: Mapping[str, nn.Module], clock: Clock) -> Iterator[NetworkTimes]:
    """Measure networks while the context lasts."""
    times = NetworkTimes(networks, clock)
    try:
        yield times
    finally:
        times.stop()


@dataclass(frozen=True)
class Spread:
    """Several measurements of one thing.

    Attributes:
        median: of them.
        low: the least.
        high: the greatest.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise at least one value."""
        return cls(median(values), min(values), max(values))
