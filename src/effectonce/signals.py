"""Signals while a run lasts: SIGTERM drains, Ctrl-C waits for what runs in lanes.

Heard where the interpreter lets us: in the main thread.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def on_sigint() -> Iterator[list[int]]:
    """Ctrl-C is noted, and raised once what runs is settled; a second one is raised at once."""
    noted: list[int] = []
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield noted
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    signal.signal(signal.SIGINT, on_signal)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def on_sigterm(stop: Callable[[], None]) -> Iterator[None]:
    """SIGTERM drains, where the interpreter lets us hear it: in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop()

    before = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
