"""A round in turns: its runs stand ready, each in a process of its own, and go on one by one.

A machine is fast now and slow then: a sum over random places in memory, half a second beside the
next one, differed by 17%. Runs that follow each other are told apart from that by nothing; what
slows runs that take turns slows them all.

    we       a Job, then a line for each turn
    a run    "turn" when it holds the sample, and whenever its turn is over; at last the answer

A run that nobody answers any more ends.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal, TypeAlias

from effectonce.cli.bench_reading import CannotMeasure, Measured

Runs: TypeAlias = Literal["bare", "ours", "handler"]
TURN: Final = "turn"
TURNS: Final = 4
"""A turn begins with cold caches and nothing on its way: of twelve in place of three, of 20,000
messages each, the share of a store on Redis was a tenth less."""

_RUN: Final = "import sys; from effectonce.cli.bench_run import main; sys.exit(main())"
"""Not `-m`: as `__main__` our own line would be named as the one where a handler failed."""


@dataclass(frozen=True, slots=True)
class Running:
    """One run, from here."""

    name: str
    process: subprocess.Popen[str]
    errors: IO[str]

    def go_on(self) -> Measured | None:
        """Its next turn, until that is over; what it measured, if it has ended with it.

        Raises CannotMeasure.
        """
        self.say(TURN)
        return self.heard()

    def heard(self) -> Measured | None:
        """None: it waits for its turn. Raises CannotMeasure."""
        assert self.process.stdout is not None
        said = self.process.stdout.readline().strip()
        if said == TURN:
            return None
        try:
            answer = json.loads(said)
        except ValueError:
            code = self.process.wait()
            self.errors.seek(0)
            last = " ".join(self.errors.read().strip().splitlines()[-1:])
            raise CannotMeasure(f"the run of {self.name} ended with {code}: {last}") from None
        if "error" in answer:
            raise CannotMeasure(answer["error"])
        return Measured(**answer["measured"])

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; `heard` tells why


@contextmanager
def running(name: str, job: Mapping[str, Any], folder: Path) -> Iterator[Running]:
    """Started with its job; gone at the end of the `with` block, whatever happened."""
    with (
        (folder / f"errors-{name}").open("w+", errors="replace") as errors,
        subprocess.Popen(
            [sys.executable, "-c", _RUN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        run = Running(name, process, errors)
        try:
            run.say(json.dumps(job))
            yield run
        finally:
            process.kill()
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # a line that it did not read any more
                process.stdin.close()


def in_turns(
    jobs: Mapping[Runs, Mapping[str, Any]], folder: Path
) -> Iterator[tuple[Runs, Measured]]:
    """Each run's answer, as it ends. Raises CannotMeasure."""
    with ExitStack() as stack:
        left = {name: stack.enter_context(running(name, jobs[name], folder)) for name in jobs}
        for name, run in list(left.items()):
            if (measured := run.heard()) is not None:  # it holds the sample; else it was all
                yield name, measured
                del left[name]
        while left:
            for name in random.sample(list(left), len(left)):
                if (measured := left[name].go_on()) is not None:
                    yield name, measured
                    del left[name]
