"""How a worker reaches the target of its effects, the witness."""

from __future__ import annotations

import os
import socket
import threading

from effectonce.testing.chaos.journal import ANSWER, Kind, now

WITNESS_GONE = 70  # EX_SOFTWARE: what a worker ends with when the run around it is no more


class Target:
    """A worker's connection to the witness. Notes may come from any thread, effects from one."""

    def __init__(self, socket_path: str, worker: int) -> None:
        self._worker = worker
        self._lock = threading.Lock()
        self._connection = socket.socket(socket.AF_UNIX)
        try:
            self._connection.connect(socket_path)
        except OSError:
            os._exit(WITNESS_GONE)
        self.note(Kind.STARTED, a=os.getpid())

    def effect(self, partition: int, offset: int, event: bytes) -> None:
        """Has taken place once this returns; and perhaps even if it never does."""
        self._send(now(Kind.EFFECT, self._worker, partition, offset, event=event))
        if self._connection.recv(1) != ANSWER:
            os._exit(WITNESS_GONE)

    def note(self, kind: Kind, partition: int = 0, offset: int = 0, a: int = 0, b: int = 0) -> None:
        self._send(now(kind, self._worker, partition, offset, a, b))

    def _send(self, record: bytes) -> None:
        try:
            with self._lock:
                self._connection.sendall(record)
        except OSError:
            os._exit(
                WITNESS_GONE
            )  # the run is over: no handler of the consumer should get to see that
