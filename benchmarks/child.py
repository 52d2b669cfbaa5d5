"""A measured process that is spoken with while it runs, in lines."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Timer
from typing import IO, Any, Final

PATIENCE_SECONDS: Final = 600.0
"""A child that says nothing for ever would hold the whole report; it is killed instead."""


@dataclass(frozen=True, slots=True)
class Child:
    """`python -m MODULE JOB`, as `child` starts it."""

    module: str
    process: subprocess.Popen[str]
    errors: IO[str]

    def line(self) -> str:
        """The next line that it prints. Raises RuntimeError where it ended without one."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            code = self.process.wait()
            self.errors.seek(0)
            raise RuntimeError(f"{self.module} ended early ({code}):\n{self.errors.read()[-2000:]}")
        return line

    def answer(self) -> dict[str, Any]:
        """The next line as JSON."""
        said: dict[str, Any] = json.loads(self.line())
        return said

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self.process.kill()
        self.process.wait()


@contextmanager
def child(
    module: str, job: Mapping[str, Any], *, patience_seconds: float = PATIENCE_SECONDS
) -> Iterator[Child]:
    """Started at once; gone at the end of the `with` block, whatever happened."""
    argv = [sys.executable, "-m", module, json.dumps(dict(job))]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        timer = Timer(patience_seconds, process.kill)
        timer.daemon = True
        timer.start()
        try:
            yield Child(module, process, errors)
        finally:
            timer.cancel()
            process.kill()
