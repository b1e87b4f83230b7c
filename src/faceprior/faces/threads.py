"""Detectors on several threads: those of other libraries compute without Python's lock."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from typing import Generic, TypeVar

Made = TypeVar("Made")
Item = TypeVar("Item")
Result = TypeVar("Result")

_WORKERS = min(4, os.cpu_count() or 1)  # each has detectors of its own, which take their time to make


class PerThread(threading.local, Generic[Made]):
    """An object that each thread has of its own: detectors of other libraries keep their work in themselves.

    Args:
        make: makes the object, when a thread first asks for it.
    """

    def __init__(self, make: Callable[[], Made]) -> None:
        self._make = make

    @cached_property
    def own(self) -> Made:
        """The thread's."""
        return self._make()


def in_parallel(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Call a function for each item on some threads, and yield what it returns in order; it must not call this."""
    return _workers().map(function, items)


@cache
def _workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_WORKERS, "faceprior-search")
