"""What a large photograph took of the memory, back to the system."""

from __future__ import annotations

import ctypes
import sys


def give_back_memory() -> None:
    """Give back what was freed: glibc keeps it, in a heap for each thread: much, after some large photographs.

    It takes milliseconds; elsewhere than on Linux with glibc it does nothing.
    """
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own; musl keeps little
        if trim is not None:
            trim(0)
