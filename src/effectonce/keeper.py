"""Who may touch the Kafka client: a sleeping thread takes it over when a handler is slow.

    caller's thread   owns the client, except between entered() and left()
    keeper's thread   sleeps; wakes when one handler call has lasted `after_seconds`, then owns the
                      client: pauses, polls (rebalances are served there), until the handler is back

A fast handler never meets the keeper: `entered` and `left` are a lock and two attributes. Should
Ctrl-C break off one of them, another `left` puts all in order. A second thread that fetches ahead
all the time costs a quarter of the speed (the GIL is handed back and forth, SPEED.md), so this one
only looks up a few times a second.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from typing import Final

from effectonce.ports import Charge

log = logging.getLogger("effectonce")

LOOKS: Final = 4
"""Looks of the sleeping keeper per `after_seconds`: it is late by a quarter at most."""


class SystemClock:
    """The real clocks."""

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    monotonic = staticmethod(time.monotonic)  # asked for each event: 50 ns less


class ThreadKeeper:
    """The real `Keeper`."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._in_handler = False
        self._tending = False
        """The keeper has the client. It takes it only while a handler runs."""
        self.progress = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, charge: Charge, *, after_seconds: float, deadline_seconds: float) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._keep,
                args=(charge, after_seconds, deadline_seconds),
                name="effectonce-keeper",
                daemon=True,
            )
        if not self._thread.is_alive():
            self._thread.start()

    def entered(self) -> None:
        self.progress += 1.0
        self._in_handler = True

    def left(self) -> None:
        with self._changed:
            self._in_handler = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._tending)

    def await_left(self, seconds: float) -> None:
        if threading.current_thread() is not self._thread:
            return
        with self._changed:
            self._changed.wait_for(lambda: not self._in_handler, seconds)

    def stop(self) -> None:
        self._stop.set()
        thread = self._thread
        if thread is not None and thread.is_alive() and thread is not threading.current_thread():
            thread.join()
        self._thread = None

    def _keep(self, charge: Charge, after_seconds: float, deadline_seconds: float) -> None:
        seen, since = -1.0, time.monotonic()
        while not self._stop.wait(after_seconds / LOOKS):
            if not self._in_handler or self.progress != seen:
                seen, since = self.progress, time.monotonic()
            elif time.monotonic() - since >= after_seconds and not self._tend(
                charge, seen, since + deadline_seconds
            ):
                return

    def _tend(self, charge: Charge, seen: float, deadline: float) -> bool:
        """Poll in the handler's place until it is back; False once it was cut off."""
        with self._changed:
            self._tending = self._is_slow(seen)
        try:
            while self._is_slow(seen):
                try:
                    if time.monotonic() >= deadline:
                        charge.cut_off()
                        return False
                    charge.tend()
                except Exception:
                    log.exception("the keeper could not tend the group; it goes on")
                    self._stop.wait(1.0)
        finally:
            with self._changed:
                self._tending = False
                self._changed.notify_all()
        return True

    def _is_slow(self, seen: float) -> bool:
        """Whether the handler call that was seen is still the one that runs."""
        return self._in_handler and self.progress == seen and not self._stop.is_set()


def stacks_of_others(only: int | None = None) -> str:
    """Where every other thread stands, or one of them: what a hanging handler hangs in."""
    frames = sys._current_frames()  # noqa: SLF001 - the documented way
    mine = threading.get_ident()
    others = {t.ident: t.name for t in threading.enumerate() if t.ident != mine}
    return "\n".join(
        f"-- {others[ident]}:\n" + "".join(traceback.format_stack(frame))
        for ident, frame in frames.items()
        if ident in others and only in (None, ident)
    )
