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
from threading import Barrier, Lock, local
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")
Other = TypeVar("Other")

_lock = Lock()
_here = local()  # on a core's thread, the pool that it belongs to


def in_turn(function: Callable[..., Result], *columns: Iterable[Any]) -> list[Result]:
    """Call a function with the first of each column, with the second of each, ..., on the caller's thread."""
    return list(map(function, *columns))


def on_cores(function: Callable[..., Result], *columns: Iterable[Any]) -> list[Result]:
    """Call a function as `in_turn` does, but each time on one core alone, and side by side.

    As many calls as torch has threads (`torch.set_num_threads`) run at once.

    Returns:
        The results in their order. What a call raises is raised.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        return in_turn(function, *columns)
    with _lock:
        pool = _pool(threads, os.getpid())
    return list(pool.map(_as_here(function), *columns))


def at_once(first: Callable[[], Result], second: Callable[[], Other]) -> tuple[Result, Other]:
    """Call two functions, neither of which depends on the other.

    Within `on_cores`, the second is called on another core if one is free by the time that the first is done, so that
    an image that is computed alone keeps two of them busy. Elsewhere they are called in turn.
    """
    pool = getattr(_here, "pool", None)
    if pool is None:
        return first(), second()
    beside = pool.submit(_as_here(second))
    try:
        result = first()
    finally:
        not_begun = beside.cancel()
    return result, second() if not_begun else beside.result()


def _as_here(function: Callable[..., Result]) -> Callable[..., Result]:
    """The function with gradients or none, as on the caller's thread: each thread has that for itself."""
    gradients = torch.is_grad_enabled()

    def called(*arguments: Any) -> Result:
        with torch.set_grad_enabled(gradients):
            return function(*arguments)

    return called


@lru_cache(1)
def _pool(threads: int, _process: int) -> ThreadPoolExecutor:
    """Threads that compute with one thread each; a forked process has none of its parent's."""
    pool, all_begun = ThreadPoolExecutor(threads, "faceprior-core"), Barrier(threads)

    def begin() -> None:
        _here.pool = pool
        torch.set_num_threads(1)
        all_begun.wait()
        torch.get_num_threads()  # at its first use a thread takes the number that holds then

    for begun in [pool.submit(begin) for _ in range(threads)]:
        begun.result()
    torch.set_num_threads(threads)  # the workers have changed what threads that begin later have
    return pool
