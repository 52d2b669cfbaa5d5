"""A connection on which a call goes out before the one in front of it is answered.

| what happens                       | the answer                                             |
| ---------------------------------- | ------------------------------------------------------ |
| the server answers                 | read in order, those in front first                    |
| it answers with an error           | None: the call comes again on the ordinary way         |
| the connection breaks, or is cut   | None for all that were on it                           |
| Ctrl-C in one of our lines         | the same, by the next call: the connection is given up |
| a fork                             | the same in the child: the connection is its parent's  |

So nothing here is retried and no error is told: whoever is given None makes the same call again,
alone, and each of our calls may run twice (redis_link.py).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Final

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from effectonce.stores.redis_commit import Call
from effectonce.stores.redis_scripts import Script

_MULTI: Final = b"*1\r\n$5\r\nMULTI\r\n"
_EXEC: Final = b"*1\r\n$4\r\nEXEC\r\n"


@dataclass(slots=True, eq=False)
class Answer:
    """What a call was, or will be, answered."""

    replies: int = 1
    """So many come; the last one is it."""
    found: Sequence[Any] | None = None
    waited_for: bool = True


class Ahead:
    """One of the client's connections, taken at the first call, and anew in a forked process."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._client: Redis | None = None
        self._connection: Any = None  # its methods have no types
        self._waiting: deque[Answer] = deque()
        self._whole = True
        """What waits is what the connection still brings. Found false, a call was broken off."""
        self._pid = os.getpid()

    def send(self, client: Redis, script: Script, call: Call) -> Answer:
        """A script's call."""
        return self._send(client, script, call, None)

    def send_together(
        self, client: Redis, script: Script, call: Call, packed: Sequence[bytes]
    ) -> Answer:
        """A script's call, and commands ready for the wire, as one transaction: a list of all."""
        return self._send(client, script, call, packed)

    def _send(
        self, client: Redis, script: Script, call: Call, packed: Sequence[bytes] | None
    ) -> Answer:
        answer = Answer() if packed is None else Answer(replies=3 + len(packed))
        with self._lock:
            self._begin()
            self._waiting.append(answer)
            try:
                if self._connection is None:
                    self._client = client
                    self._connection = client.connection_pool.get_connection()
                calls = self._connection.pack_command(
                    "EVALSHA", script.sha, len(call.keys), *call.keys, *call.args
                )
                if packed is not None:
                    calls = [b"".join((_MULTI, *calls, *packed, _EXEC))]
                # a PING in between would be answered with what is waited for
                self._connection.send_packed_command(calls, check_health=False)
            except (RedisError, OSError):
                self._break_off()
            self._whole = True
        return answer

    def read(self, answer: Answer) -> Sequence[Any] | None:
        with self._lock:
            self._begin()
            while answer.waited_for:
                self._read_next()
            self._whole = True
        return answer.found

    def close(self) -> None:
        with self._lock:
            self._break_off()

    def _begin(self) -> None:
        if not self._whole or self._pid != os.getpid():
            self._break_off()
        self._whole, self._pid = False, os.getpid()

    def _read_next(self) -> None:
        found = None
        try:
            for _ in range(self._waiting[0].replies):
                found = self._read_one()
        except (RedisError, OSError):
            self._break_off()
            return
        front = self._waiting[0]
        front.found, front.waited_for = found, False
        self._waiting.popleft()

    def _read_one(self) -> Sequence[Any] | None:
        try:
            answer: Sequence[Any] | None = self._connection.read_response()
        except ResponseError:
            return None
        return answer

    def _break_off(self) -> None:
        for answer in self._waiting:
            answer.waited_for = False
        self._waiting.clear()
        client, connection = self._client, self._connection
        self._client = self._connection = None
        if client is not None and connection is not None:
            connection.disconnect()
            client.connection_pool.release(connection)
