"""TLS in front of a server that speaks none: Valkey's wheel is built without it.

with TlsProxy(server, folder) as proxy:
    url = f"rediss://127.0.0.1:{proxy.port}?ssl_ca_certs={proxy.authority}"
"""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from effectonce.testing.servers import ValkeyServer


class TlsProxy:
    """Its certificate is its own authority, and names 127.0.0.1 alone."""

    def __init__(self, server: ValkeyServer, folder: Path) -> None:
        self.authority, key = folder / "certificate.pem", folder / "key.pem"
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
                *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
                *("-out", str(self.authority), "-keyout", str(key)),
            ],
            check=True,
            capture_output=True,
        )
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(self.authority, key)
        self._behind = server.url.removeprefix("unix://")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=self._accept)]
        self._sockets: list[socket.socket] = []

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:  # closed
                return
            try:
                outer = self._context.wrap_socket(plain, server_side=True)
            except OSError:  # the client does not like our certificate
                plain.close()
                continue
            inner = socket.socket(socket.AF_UNIX)
            inner.connect(self._behind)
            self._sockets += [outer, inner]
            for pair in ((outer, inner), (inner, outer)):
                thread = threading.Thread(target=_pump, args=pair)
                self._threads.append(thread)
                thread.start()

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        for each in self._sockets:
            _shut(each)
        for thread in self._threads[1:]:
            thread.join()
        for each in self._sockets:
            each.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
    _shut(sink)


def _shut(one: socket.socket) -> None:
    with suppress(OSError):  # it is already
        one.shutdown(socket.SHUT_RDWR)
