"""A consumer in a process of its own, for tests that kill, stop or end it.

Started by `Worker`; tells on its standard output what its handler does, a line a step:
`enter ID`, `leave ID`. While the file `hold` exists a handler does not return.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import effectonce as eo
from effectonce.hooks import BatchCommitted, HookEvent
from tests.bad_input.kit import PATIENCE_SECONDS, count
from tests.proofs import aio_kit

HELD_POLL_SECONDS = 0.01


def main(job: dict[str, Any]) -> None:
    hold = Path(job["hold"])

    def tell(step: str, event: eo.Event) -> None:
        print(step, event.id, flush=True)  # noqa: T201

    def effect(event: eo.Event, tx: eo.KeyValueTx) -> None:
        tell("enter", event)
        while hold.exists():
            time.sleep(HELD_POLL_SECONDS)
        if event.id == job["deadly"]:
            os._exit(9)
        count(event, tx)
        tell("leave", event)

    def outside(event: eo.Event) -> None:
        step = "maybe" if event.maybe_repeated else "fresh"
        tell(step, event)
        if event.id == job["deadly"]:
            os._exit(9)

    def on_event(event: HookEvent) -> None:
        if isinstance(event, BatchCommitted) and event.fresh and job["dies_after_commit"]:
            os.kill(os.getpid(), signal.SIGKILL)

    eo.hooks.set_hooks([on_event])
    within = job["effects"] == "in-store"
    once = eo.Once(
        f"rocksdb://{job['state']}",
        identify=eo.header("event-id"),
        effects=eo.InStore() if within else eo.Outside(on_doubt="repeat"),
    )
    handler: Any = effect if within else outside
    if job["driver"] == "aiokafka":
        aio_kit.run(job["config"], [job["topic"]], once, handler)
        return
    with eo.OnceConsumer(job["config"], [job["topic"]], once) as consumer:
        consumer.run(handler)


class Worker:
    """One such process, and what it has told."""

    def __init__(self, flow: Any, config: Mapping[str, Any], **job: Any) -> None:
        self.hold = flow.state.parent / "hold"
        settings = {"bootstrap.servers": flow.bootstrap, "group.id": flow.group, **config}
        told = {
            "config": settings,
            "topic": flow.topic,
            "driver": flow.driver_name,
            "state": str(flow.state),
            "hold": str(self.hold),
            "effects": "in-store",
            "deadly": "",
            "dies_after_commit": False,
            **job,
        }
        self._watch = flow.watch
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.proofs.worker", json.dumps(told)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        self._readers = [
            threading.Thread(target=self._read, args=(pipe,), daemon=True)
            for pipe in (self.process.stdout, self.process.stderr)
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, pipe: Any) -> None:
        for line in pipe:
            with self._changed:
                self.lines.append(line.strip())
                self._changed.notify_all()
            self._watch.note(line)

    def until(self, what: Callable[[], object]) -> None:
        with self._changed:
            assert self._changed.wait_for(what, PATIENCE_SECONDS), self.lines

    def steps(self, step: str) -> list[str]:
        return [line.split()[1] for line in self.lines if line.startswith(f"{step} ")]

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ended(self) -> int:
        """Wait for the end; the exit code."""
        code = self.process.wait(PATIENCE_SECONDS)
        for reader in self._readers:
            reader.join(PATIENCE_SECONDS)
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.ended()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
