"""What a large photograph took of the memory, back to the system."""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1)
def _libc() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "malloc_trim") else None  # glibc's own; musl keeps little


def give_back_memory() -> None:
    """Give back what was freed: glibc keeps it, in a heap for each thread: much, after some large photographs.

    It takes milliseconds; elsewhere than on Linux with glibc it does nothing.
    """
    libc = _libc()
    if libc is not None:
        libc.malloc_trim(0)
