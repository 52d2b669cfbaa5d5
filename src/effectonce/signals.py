"""Signals while a run lasts: SIGTERM drains, Ctrl-C waits for what runs in lanes.

Heard where the interpreter lets us: in the main thread.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final


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


_stops: Final[list[Callable[[], None]]] = []
"""Of all runs in the main thread: an event loop has several."""
_before: Final[list[Any]] = []


@contextmanager
def on_sigterm(stop: Callable[[], None]) -> Iterator[None]:
    """SIGTERM drains, where the interpreter lets us hear it; all that run in the main thread.

    In an event loop too by `signal.signal`, not by its `add_signal_handler`: that cannot be put
    back, and a handler of the user's would be gone. What it sets is seen within a fetch.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if not _stops:
        _before.append(signal.signal(signal.SIGTERM, _stop_all))
    _stops.append(stop)
    try:
        yield
    finally:
        _stops.remove(stop)
        if not _stops:
            signal.signal(signal.SIGTERM, _before.pop())


def _stop_all(number: int, frame: FrameType | None) -> None:
    for stop in _stops:
        stop()
