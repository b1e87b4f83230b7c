"""Images side by side on the cores of a CPU, each on one of them.

With two threads, kernels split sums and vectors elsewhere than with one, and with several images they are other
kernels: the last bits of a result would depend on both. An image that one thread computes alone always has the same
ones, and of many images no core waits for another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Barrier, Lock
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")

_lock = Lock()


def in_turn(function: Callable[..., Result], *columns: Iterable[Any]) -> list[Result]:
    """Call a function with the first of each column, with the second of each, ..., on the caller's thread."""
    return list(map(function, *columns))


def on_cores(function: Callable[..., Result], *columns: Iterable[Any]) -> list[Result]:
    """Call a function as `in_turn` does, but each time on one core alone, and side by side.

    As many calls as torch has threads (`torch.set_num_threads`) run at once.

    Returns:
        The results in their order. What a call raises is raised.
    """
    threads, gradients = torch.get_num_threads(), torch.is_grad_enabled()
    if threads == 1:
        return in_turn(function, *columns)

    def alone(*arguments: Any) -> Result:
        with torch.set_grad_enabled(gradients):  # which every thread has for itself
            return function(*arguments)

    with _lock:
        pool = _pool(threads, os.getpid())
    return list(pool.map(alone, *columns))


@lru_cache(1)
def _pool(threads: int, _process: int) -> ThreadPoolExecutor:
    """Threads that compute with one thread each; a forked process has none of its parent's."""
    pool, all_begun = ThreadPoolExecutor(threads, "faceprior-core"), Barrier(threads)

    def begin() -> None:
        torch.set_num_threads(1)
        all_begun.wait()
        torch.get_num_threads()  # at its first use a thread takes the number that holds then

    for begun in [pool.submit(begin) for _ in range(threads)]:
        begun.result()
    torch.set_num_threads(threads)  # the workers have changed what threads that begin later have
    return pool
