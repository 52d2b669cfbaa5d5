"""What goes on beside an asyncio run: a watch over its handlers.

aiokafka keeps the membership by itself, so no keeper polls here. What is left is the handler that
swallows its cancellation, and a loop of the user's own, which nobody may cancel.
"""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from effectonce.assignment import Assignment
from effectonce.handlers_aio import Calls

log = logging.getLogger("effectonce")

T = TypeVar("T")

LOOKS: Final = 4
"""Looks of the watch per deadline."""


class Watch:
    """Has it cut off, as ThreadKeeper does."""

    def __init__(self, deadline_seconds: float) -> None:
        self._deadline_seconds = deadline_seconds
        self._progress = 0
        self._grace_seconds: float | None = None
        """None while no handler runs."""
        self._task: asyncio.Task[None] | None = None

    def start(self, ours: Assignment, calls: Calls) -> None:
        self._task = asyncio.create_task(self._look(ours, calls), name="effectonce-watch")

    def entered(self, grace_seconds: float) -> None:
        self._progress += 1
        self._grace_seconds = grace_seconds

    def progressed(self) -> None:
        self._progress += 1

    def left(self) -> None:
        self._progress += 1
        self._grace_seconds = None

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _look(self, ours: Assignment, calls: Calls) -> None:
        loop = asyncio.get_running_loop()
        seen, since = -1, loop.time()
        while True:
            await asyncio.sleep(min(self._deadline_seconds / LOOKS, 1.0))
            if self._grace_seconds is None or self._progress != seen:
                seen, since = self._progress, loop.time()
            elif loop.time() - since >= self._deadline_seconds + self._grace_seconds:
                log.error("a handler swallowed its cancellation, or a loop of yours hangs%s",
                          _stack_of(calls.running))  # fmt: skip
                try:
                    await ours.cut_off()
                except Exception:
                    log.exception("not all of a handler that was cut off could be made harmless")
                return


def _stack_of(task: asyncio.Task[Any] | None) -> str:
    if task is None:
        return ""
    text = io.StringIO()
    task.print_stack(file=text)
    return "\n" + text.getvalue()


@contextmanager
def alone(idle: asyncio.Event) -> Iterator[None]:
    """Whoever uses the consumer now; it is idle once more when that ends."""
    if not idle.is_set():
        raise RuntimeError("this consumer runs already: one run at a time")
    idle.clear()
    try:
        yield
    finally:
        idle.set()


async def kept(work: Coroutine[Any, Any, T]) -> tuple[T | None, BaseException | None]:
    """What it returned and what it raised: sys.exit in a task would break the loop off."""
    try:
        return await work, None
    except BaseException as error:  # noqa: BLE001 - raised where it was awaited
        return None, error
