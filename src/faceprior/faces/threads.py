"""Detectors that several threads may call at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Made = TypeVar("Made")


class PerThread(threading.local, Generic[Made]):
    """An object that each thread has of its own: detectors of other libraries keep their work in themselves.

    Args:
        make: makes the object; called at once, and again on every other thread that asks.

    Attributes:
        own: the thread's.
    """

    def __init__(self, make: Callable[[], Made]) -> None:
        self.own = make()
