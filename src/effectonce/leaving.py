"""How a consumer of librdkafka's is closed, which may wait for ever.

A rebalance that is under way when librdkafka closes has a callback of its own. Answered just as the
group ends, that answer is destroyed, and the callback waits for ever (seen, 1 of 200 closes on
KIP-848; librdkafka 4527 and 4884 have the same). So

    first all partitions are given back, under a limit, and nothing is under way any more;
    then it is closed in a thread, which is left behind if it does not end.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Event, Lock, Thread
from typing import Final

from confluent_kafka import Consumer

log = logging.getLogger("effectonce")

GIVE_BACK_SECONDS: Final = 2.0
"""Limit of giving all back: some milliseconds, but a cooperative member that waits for others to
join keeps its own until they have (15 s in all, seen); then the close itself does it, as ever."""
CLOSE_SECONDS: Final = 30.0
"""Limit of librdkafka's own close: twice the longest that was seen to end."""


def give_back(consumer: Consumer) -> None:
    """Give all partitions back; what a callback of the user's own raises meanwhile comes after."""
    consumer.pause(consumer.assignment())  # else what was fetched comes first
    consumer.unsubscribe()
    deadline, seconds = time.monotonic() + GIVE_BACK_SECONDS, 0.0
    raised: BaseException | None = None
    while seconds == 0.0 or (consumer.assignment() and time.monotonic() < deadline):
        try:
            consumer.poll(seconds)
        except BaseException as error:  # noqa: BLE001 - a Ctrl-C too waits for so long
            raised = raised or error
        seconds = 0.05
    if raised is not None:
        raise raised


class Leaving:
    """The close of one consumer. The thread keeps it: to let go of it would wait as well."""

    def __init__(self) -> None:
        self._once = Lock()
        self._ended = Event()
        self._raised: BaseException | None = None

    @property
    def has_begun(self) -> bool:
        return self._once.locked()

    def end(self, close: Callable[[], None], *, here: bool = False) -> None:
        """Close it, or wait for the close that is under way. Raises what that raised.

        here: without a thread, which would wait until we are out of another call.
        """
        try:
            if here:
                self._run(close)
            else:  # broken off by a Ctrl-C it is started once more, and `_run` takes the first one
                Thread(
                    target=self._run, args=(close,), name="effectonce-leaving", daemon=True
                ).start()
        except RuntimeError:  # none can be started any more: the interpreter ends
            self._run(close)
        if not self._ended.wait(CLOSE_SECONDS):
            log.error(
                "librdkafka has not closed within %.0f s and may never (its issue 4527). What "
                "ended is committed; the group gives the partitions to others once this member's "
                "session has timed out", CLOSE_SECONDS,
            )  # fmt: skip
        raised, self._raised = self._raised, None
        if raised is not None:
            raise raised

    def _run(self, close: Callable[[], None]) -> None:
        if not self._once.acquire(blocking=False):
            return  # the first one is at it, or was
        try:
            close()
        except BaseException as error:  # noqa: BLE001 - for whoever closes
            self._raised = error
        finally:
            self._ended.set()
