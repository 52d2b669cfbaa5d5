"""The witness: the target of all effects, in a process of its own, with a journal and a trigger.

Workers call it as they would call a bank: an effect is sent, journalled, and then answered. Being
where effects are seen first, it is also who strikes: an armed trigger sends its signal at the n-th
effect, *before* that effect is answered. So a kill falls between effect and commit by construction,
not by luck, and the journal says what came first.

    orders (stdin) ---> witness ---> journal
    workers (unix socket) <--> witness

When the orders end, because the run is over or its process died, every worker that is still
connected is killed: nothing outlives the run, not even a frozen process.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from effectonce.testing.chaos.journal import ANSWER, SIZE, Kind, Record, now, pack, unpack

ANY_WORKER = 0
_JOURNALLED = {
    signal.SIGKILL: Kind.KILLED,
    signal.SIGSTOP: Kind.FROZEN,
    signal.SIGTERM: Kind.ASKED,
}


# -- the process ---------------------------------------------------------------------------------


@dataclass
class _Worker:
    connection: socket.socket
    number: int = 0
    pid: int = 0
    received: bytearray = field(default_factory=bytearray)


@dataclass
class _Trigger:
    """`worker` is who will be struck; ANY_WORKER until an effect has said who."""

    signal: signal.Signals
    worker: int
    effects: int
    delay_ns: int
    due_ns: int | None = None


class _Witness:
    def __init__(self, listener: socket.socket, journal: BinaryIO, orders: int) -> None:
        self._listener = listener
        self._journal = journal
        self._orders = orders
        self._ordered = bytearray()
        self._workers: dict[int, _Worker] = {}
        self._trigger: _Trigger | None = None
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._selector.register(orders, selectors.EVENT_READ, self._obey)
        self._open = True

    def serve(self) -> None:
        while self._open or self._workers:
            for key, _ in self._selector.select(self._seconds_to_strike()):
                if isinstance(key.data, _Worker):
                    self._hear(key.data)
                else:
                    key.data()
            self._strike_if_due()

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        worker = _Worker(connection)
        self._workers[connection.fileno()] = worker
        self._selector.register(connection, selectors.EVENT_READ, worker)

    def _obey(self) -> None:
        data = os.read(self._orders, 1 << 16)
        if not data:
            self._end()
        self._ordered += data
        for record in _take(self._ordered):
            if record.kind == Kind.ARM:
                self._trigger = _Trigger(
                    signal.Signals(record.offset), record.worker, record.a, record.b
                )
            else:
                self._journal.write(pack(record))

    def _end(self) -> None:
        self._open = False
        for source in (self._orders, self._listener):
            self._selector.unregister(source)
        self._listener.close()
        for worker in self._workers.values():
            if worker.pid:
                with suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)

    def _hear(self, worker: _Worker) -> None:
        try:
            data = worker.connection.recv(1 << 16)
        except ConnectionResetError:  # killed before it had read our answer
            data = b""
        if not data:
            self._selector.unregister(worker.connection)
            del self._workers[worker.connection.fileno()]
            worker.connection.close()
            return
        worker.received += data
        for record in _take(worker.received):
            self._journal.write(pack(record))
            if record.kind == Kind.STARTED:
                worker.number, worker.pid = record.worker, record.a
            elif record.kind == Kind.EFFECT:
                self._pull(worker)
                self._answer(worker)

    def _answer(self, worker: _Worker) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # killed; recv will say so
            worker.connection.send(ANSWER)

    def _pull(self, worker: _Worker) -> None:
        """One effect nearer to the strike."""
        trigger = self._trigger
        if trigger is None or trigger.due_ns or trigger.worker not in (ANY_WORKER, worker.number):
            return
        trigger.effects -= 1
        if trigger.effects <= 0:
            trigger.worker = worker.number
            trigger.due_ns = time.monotonic_ns() + trigger.delay_ns
            self._strike_if_due()

    def _seconds_to_strike(self) -> float | None:
        if self._trigger is None or self._trigger.due_ns is None:
            return None
        return max(0.0, (self._trigger.due_ns - time.monotonic_ns()) / 1e9)

    def _strike_if_due(self) -> None:
        trigger = self._trigger
        if trigger is None or trigger.due_ns is None or time.monotonic_ns() < trigger.due_ns:
            return
        self._trigger = None
        for worker in self._workers.values():
            if worker.number == trigger.worker:
                with suppress(ProcessLookupError):  # it ended by itself, and nobody was struck
                    os.kill(worker.pid, trigger.signal)
                    self._journal.write(now(_JOURNALLED[trigger.signal], worker.number))


def _take(buffer: bytearray) -> list[Record]:
    """The whole records at the front of the buffer, removed from it."""
    whole = len(buffer) - len(buffer) % SIZE
    records = list(unpack(bytes(buffer[:whole])))
    del buffer[:whole]
    return records


def main() -> None:
    """Serve until the orders end."""
    socket_path, journal_path = sys.argv[1:]
    with socket.socket(socket.AF_UNIX) as listener, Path(journal_path).open("ab", 0) as journal:
        listener.bind(socket_path)
        listener.listen(64)
        os.write(sys.stdout.fileno(), ANSWER)  # ready
        _Witness(listener, journal, sys.stdin.fileno()).serve()


# -- how the run holds it ------------------------------------------------------------------------


def child_environment() -> dict[str, str]:
    """A child finds the modules that this process finds, an uninstalled test's own included."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


class WitnessProcess:
    """The witness as its run sees it: started, given orders, ended."""

    def __init__(self, home: Path) -> None:
        self.socket_path = home / "witness.sock"
        self.journal_path = home / "journal"
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(self.socket_path), str(self.journal_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=child_environment(),
            start_new_session=True,  # Ctrl-C is the run's to handle
        )
        assert self._process.stdout is not None
        if self._process.stdout.read(1) != ANSWER:
            raise RuntimeError(f"the witness ended with exit code {self._process.wait()}")

    def arm(self, signal_number: int, worker: int, effects: int, delay_seconds: float) -> None:
        """Strike `worker` at its `effects`-th effect from now. Replaces what was armed before."""
        delay_ns = int(delay_seconds * 1e9)
        self._order(now(Kind.ARM, worker, offset=signal_number, a=effects, b=delay_ns))

    def note(self, kind: Kind, worker: int, a: int = 0) -> None:
        """Journal what others than the witness did to a worker, or saw of it."""
        self._order(now(kind, worker, a=a))

    def close(self) -> None:
        """Kills the workers that are still there, and returns once the journal is whole."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _order(self, order: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(order)


if __name__ == "__main__":
    main()
