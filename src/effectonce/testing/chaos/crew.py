"""The workers of a run: started, thawed, replaced when they have ended, dismissed at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

from effectonce.testing.chaos.journal import Kind
from effectonce.testing.chaos.tally import Tally
from effectonce.testing.chaos.witness import WitnessProcess, child_environment
from effectonce.testing.chaos.worker import Job

_WORKER = "effectonce.testing.chaos.worker"
_ABORT_SECONDS = 5.0
_DISMISS_SECONDS = 30.0
_TICK_SECONDS = 0.02
_NOT_OVERTAKEN = 8
"""So many times longer a worker stays frozen whose partitions nobody has been given."""
TOO_MANY_FAILURES = 10


@dataclass
class Place:
    """One of the run's places for a worker, and who has it now."""

    slot: int
    worker: int = 0
    process: subprocess.Popen[bytes] | None = None
    due: float = 0.0
    """When an empty place is filled again."""


class Crew:
    """Keeps every place filled. Who is struck, and when, the director decides."""

    def __init__(
        self,
        job: Job,
        workers: int,
        frozen_seconds: float,
        witness: WitnessProcess,
        tally: Tally,
    ) -> None:
        self.places = [Place(slot) for slot in range(workers)]
        self.failures = 0
        """Workers that nobody had struck and that ended all the same."""
        self.absent_seconds = 0.0
        """How long a place stays empty once its worker has ended."""
        self._job = job
        self._frozen_seconds = frozen_seconds
        self._witness = witness
        self._tally = tally
        self._hired = 0

    def tick(self) -> None:
        now = time.monotonic()
        for place in self.places:
            if place.process is None:
                if now >= place.due:
                    self._hire(place)
            elif (code := place.process.poll()) is not None:
                self._ended(place, code)
            elif self._tally.frozen and now >= self._thaw_due(place.worker):
                self._thaw(place)

    def dismiss(self, absorb: Callable[[], None]) -> None:
        """SIGTERM for everybody, SIGKILL for who does not go. `absorb` keeps the tally current."""
        deadline = time.monotonic() + _DISMISS_SECONDS
        waiting = [place for place in self.places if place.process is not None]
        asked: set[int] = set()
        while waiting:
            absorb()
            for place in waiting:
                # asked while it still imports, it would die of the signal instead of leaving
                if place.worker in self._tally.started and place.worker not in asked:
                    asked.add(place.worker)
                    self._dismiss(place)
            waiting = [place for place in waiting if not self._gone(place)]
            if time.monotonic() > deadline:
                break
            time.sleep(_TICK_SECONDS)
        for place in waiting:
            assert place.process is not None
            self._ended(place, _end(place.process))

    def log_path(self, worker: int) -> Path:
        return Path(self._job.home) / f"worker-{worker}.log"

    def _hire(self, place: Place) -> None:
        self._hired += 1
        place.worker = self._hired
        job = replace(self._job, number=place.worker)
        with self.log_path(place.worker).open("ab") as log:
            place.process = subprocess.Popen(
                [sys.executable, "-m", _WORKER, job.dump()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=child_environment(),
                start_new_session=True,  # Ctrl-C is the run's to handle
            )

    def _ended(self, place: Place, code: int) -> None:
        place.process = None
        place.due = time.monotonic() + self.absent_seconds
        self._witness.note(Kind.ENDED, place.worker, a=code)
        if code not in (0, -signal.SIGKILL):
            self.failures += 1

    def _gone(self, place: Place) -> bool:
        assert place.process is not None
        code = place.process.poll()
        if code is None:
            return False
        self._ended(place, code)
        return True

    def _dismiss(self, place: Place) -> None:
        if place.worker in self._tally.frozen:
            self._thaw(place)
        assert place.process is not None
        self._witness.note(Kind.DISMISSED, place.worker)
        place.process.terminate()

    def _thaw_due(self, worker: int) -> float:
        """Once another has its partitions, and not before: a kill meanwhile delays the group."""
        longer = 1 if worker in self._tally.overtaken else _NOT_OVERTAKEN
        return self._tally.frozen.get(worker, inf) / 1e9 + longer * self._frozen_seconds

    def _thaw(self, place: Place) -> None:
        assert place.process is not None
        # noted before, not after: what it does once awake must not seem to come before
        self._tally.frozen.pop(place.worker, None)
        self._witness.note(Kind.THAWED, place.worker)
        os.kill(place.process.pid, signal.SIGCONT)


def _end(process: subprocess.Popen[bytes]) -> int:
    """SIGABRT first: it writes into its log where it hangs."""
    process.send_signal(signal.SIGABRT)
    with suppress(subprocess.TimeoutExpired):
        return process.wait(_ABORT_SECONDS)
    process.kill()
    return process.wait()
