"""One server as a child process that cannot outlive its parent.

A test run may be SIGKILLed at any moment, so no handler of ours can be trusted to run. Between us
and the server stands one line of shell, which leaves a watchdog behind and then *becomes* the
server:

    ours --- a pipe that we never write to ---> watchdog (sh) --- kill -9 its group ---> server

The pipe closes however we die, and the watchdog then kills the process group that it shares with
the server. `PR_SET_PDEATHSIG` is not used: it fires when the *thread* that forked ends, wants code
run between fork and exec, and exists on Linux alone.
"""

import atexit
import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

INSTALL = 'pip install "effectonce[servers]"'

# `exec 3<&0` first: a shell gives its background jobs /dev/null for stdin. In the subshell `$$` is
# still the outer shell, whose process and group the server takes over; the group's id cannot be
# reused while the watchdog lives in it, so the kill never hits a stranger.
_WATCHED = 'exec 3<&0; { read -r _; kill -s KILL -- -$$; } <&3 3<&- & exec "$@" </dev/null 3<&-'

# Below the ephemeral ranges of Linux (32768 up) and macOS (49152 up): while a killed server is
# down, no client can be handed its port as a local one, nor connect to itself by reconnecting.
_FIRST_PORT, _LAST_PORT = 20_000, 32_000
_APART = 16  # neighbours in process id begin their search so far apart: few look at a held one
_held: list[socket.socket] = []

_POLL_SECONDS = 0.01
_COMPLAINT = re.compile(r"\b(ERROR|FATAL)\b|Exception")


class ServerError(Exception):
    """A server could not be started, stopped or used; the text carries the end of its log."""


class ServerUnavailable(ServerError):
    """A server cannot be had on this machine; the text says what to install."""


class Closing:
    """What is closed at the end of its `with` block."""

    def close(self) -> None:
        """Safe to call twice."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, given to nobody else while this process lives.

    A server takes seconds to bind its port, and leaves it while it is killed: two test runs that
    only looked whether a port was free were both given it. So each also holds the UDP port of that
    number, which no server here uses, and which the kernel takes back however the process ends.
    """
    span = _LAST_PORT - _FIRST_PORT
    for step in range(span):
        port = _FIRST_PORT + (os.getpid() * _APART + len(_held) + step) % span
        claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            claim.bind(("127.0.0.1", port))
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            claim.close()
            continue
        _held.append(claim)
        return port
    raise ServerError(f"no free port between {_FIRST_PORT} and {_LAST_PORT} on 127.0.0.1")


class ServerProcess:
    """A server that can be killed and started again with the same command line.

    `answers` asks the server whether it is ready; it may block for a fraction of a second.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        log_path: Path,
        answers: Callable[[], bool],
        start_seconds: float,
    ) -> None:
        self.name = name
        self._argv = list(argv)
        self._log_path = log_path
        self._answers = answers
        self._start_seconds = start_seconds
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The running server's process id; None while it is down."""
        return self._child.pid if self._child is not None and self.running else None

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def start(self) -> None:
        """Starts the server and returns once it answers.

        Raises:
            ServerError: it died, or did not answer within `start_seconds`; with the end of its log.
        """
        if self.running:
            raise ServerError(f"{self.name} is already running")
        self._reap()
        with self._log_path.open("ab") as log:
            self._child = subprocess.Popen(
                ["/bin/sh", "-c", _WATCHED, "sh", *self._argv],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                bufsize=0,
                start_new_session=True,  # Ctrl-C is ours alone: the server outlives its clients
            )
        _ours.add(self)
        try:
            self._await_answer(self._child)
        except BaseException:
            self._reap()
            raise

    def kill(self) -> None:
        """SIGKILL: the crash test. Returns when the process is gone; no-op if it is not running."""
        self._reap()

    def stop(self, timeout_seconds: float = 30.0) -> None:
        """SIGTERM, then waits for the clean shutdown; no-op if it is not running.

        Raises:
            ServerError: it was still running after `timeout_seconds`, and was killed.
        """
        if self._child is None:
            return
        try:
            self._child.terminate()
            self._child.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            raise ServerError(
                f"{self.name} was killed: still running {timeout_seconds:g} s after SIGTERM"
                f"{self._tail_for_error()}"
            ) from None
        finally:
            self._reap()

    def restart(self) -> None:
        """Starts it again, after a clean stop if it is still running."""
        self.stop()
        self.start()

    def log_tail(self, lines: int = 40) -> str:
        """The last lines of everything that the server printed, over all its starts."""
        if not self._log_path.exists():
            return ""
        with self._log_path.open("rb") as log:
            log.seek(-min(self._log_path.stat().st_size, 512 * lines), os.SEEK_END)
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])

    def _await_answer(self, child: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self._start_seconds
        while not self._answers():
            try:
                code = child.wait(_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                code = None
            if code is not None:
                raise ServerError(
                    f"{self.name} ended with exit code {code} before it was ready"
                    f"{self._tail_for_error()}"
                )
            if time.monotonic() > deadline:
                raise ServerError(
                    f"{self.name} did not answer within {self._start_seconds:g} s"
                    f"{self._tail_for_error()}"
                )

    def _tail_for_error(self) -> str:
        """The complaints come apart: Kafka's log ends in forty lines of an orderly shutdown."""
        lines = self.log_tail(1000).splitlines()
        complaints = [line for line in lines[:-40] if _COMPLAINT.search(line)][:10]
        said = "\nit complained:\n" + "\n".join(complaints) if complaints else ""
        return f"{said}\nthe end of its log:\n" + "\n".join(lines[-40:])

    def _reap(self) -> None:
        """Kills what is left of the group (the watchdog, at least) and lets go of it."""
        child, self._child = self._child, None
        _ours.discard(self)
        if child is None:
            return
        assert child.stdin is not None
        with contextlib.suppress(ProcessLookupError):  # somebody killed the whole group already
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        child.stdin.close()

    def _disown(self) -> None:
        """In a forked child, which holds a copy of the pipe: lets go without killing."""
        child, self._child = self._child, None
        if child is not None and child.stdin is not None:
            child.stdin.close()
            child.returncode = 0  # nobody to wait for here: silences Popen's warning


_ours: set[ServerProcess] = set()


def _at_exit() -> None:
    for server in list(_ours):
        server.kill()
    for claim in _held:
        claim.close()


def _in_forked_child() -> None:
    for server in _ours:
        server._disown()  # noqa: SLF001


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_in_forked_child)
