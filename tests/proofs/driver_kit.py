"""A member in a process of its own, that can be held and killed.

    with process(flow, at=ids[1], act="hold") as member:
        member.until(f"in {ids[1]}")       its handler holds there until `member.go()`

It says `in ID` as its handler has counted and is about to act: a kill finds writes to roll back.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import effectonce as eo
from effectonce import hooks
from effectonce.hooks import BatchCommitted, HookEvent
from tests.bad_input.kit import PATIENCE_SECONDS, Flow, Watch, count
from tests.proofs.kit import CLASSIC, DRIVERS, RealFlow


@dataclasses.dataclass(frozen=True)
class Orders:
    """What the process does; JSON on its command line."""

    bootstrap: str
    topic: str
    group: str
    state: str
    act: str
    """"hold" (until a line comes), "kill" (itself, at once), "kill after commit"."""
    driver: str
    at: str = ""
    """The event at which the handler acts."""
    limits: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    config: Mapping[str, Any] = dataclasses.field(default_factory=lambda: CLASSIC)
    """With a short session: whoever comes after a killed one waits for its end."""


class Process:
    """The parent's side."""

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        self.popen = popen
        self.watch = Watch()
        assert popen.stdout is not None
        assert popen.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=(pipe,))
            for pipe in (popen.stdout, popen.stderr)
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, pipe: IO[str]) -> None:
        for line in pipe:
            self.watch.note(line.rstrip("\n"))

    def lines(self, start: str = "") -> list[str]:
        return [line for line in self.watch.of(str) if line.startswith(start)]

    def until(self, line: str) -> None:
        self.watch.until(lambda: line in self.lines())

    def said(self) -> str:
        return "\n".join(self.lines())

    def go(self) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write("\n")
        self.popen.stdin.flush()

    def exit_code(self) -> int:
        """Wait until it has ended and all that it said is read."""
        code = self.popen.wait(PATIENCE_SECONDS)
        for reader in self._readers:
            reader.join(PATIENCE_SECONDS)
        return code


@contextmanager
def process(flow: RealFlow, **orders: Any) -> Iterator[Process]:
    """Start one; killed at the end of the `with` if it is still there."""
    written = Orders(
        flow.bootstrap, flow.topic, flow.group, str(flow.state), driver=flow.driver_name, **orders
    )
    with subprocess.Popen(
        [sys.executable, "-m", __name__, json.dumps(dataclasses.asdict(written))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as popen:
        member = Process(popen)
        try:
            yield member
        finally:
            popen.kill()
            member.exit_code()


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _main(orders: Orders) -> None:
    def handler(event: eo.Event, tx: eo.KeyValueTx) -> None:
        count(event, tx)
        _say(f"in {event.id}")
        if event.id == orders.at and orders.act == "hold":
            sys.stdin.readline()
        elif event.id == orders.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_event(event: HookEvent) -> None:
        if isinstance(event, BatchCommitted) and orders.act == "kill after commit":
            os.kill(os.getpid(), signal.SIGKILL)

    hooks.set_hooks([on_event])
    flow = Flow(orders.bootstrap, orders.topic, Path(orders.state), Watch())
    flow.group = orders.group
    flow.driver = DRIVERS[orders.driver]
    with flow.consumer(limits=eo.Limits(**orders.limits), config=orders.config) as consumer:
        consumer.run(handler)


if __name__ == "__main__":
    _main(Orders(**json.loads(sys.argv[1])))
