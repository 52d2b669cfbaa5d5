"""What a run must know of a store: its URL, an effect in it, and how to read the effects back.

The effect is the worst one to repeat: read n, write n + 1. Beside n stands the worker that wrote it
last, so that the judge can tell a committed effect from one that a kill rolled back.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

from effectonce.model import NO_ID, Partition
from effectonce.ports import AsyncKeyValueTx, KeyValueTx
from effectonce.stores import open_store
from effectonce.testing.chaos.judge import Counted

_ROW = struct.Struct("<II")


class ChaosStore(Protocol):
    """One value of `STORES`: a new store joins the crash run by providing these."""

    @property
    def killed_ns(self) -> Sequence[int]:
        """When the store itself was killed in this run, on the journal's clock."""
        ...

    def serve(self, home: Path) -> AbstractContextManager[object]:
        """Whatever must run while the run lasts."""
        ...

    def url(self, home: str) -> str: ...
    def count(self, tx: KeyValueTx, event: bytes, worker: int) -> None:
        """The effect: one more for this event."""
        ...

    async def count_async(self, tx: AsyncKeyValueTx, event: bytes, worker: int) -> None: ...

    def read(self, home: str, partitions: Iterable[Partition]) -> dict[bytes, Counted]:
        """Every event with an effect. Only after all workers have ended."""
        ...


def _one_more(row: bytes | None, worker: int) -> bytes:
    times = _ROW.unpack(row)[0] if row else 0
    return _ROW.pack(times + 1, worker)


class _Counts:
    """Counts in rows of the partition's own."""

    killed_ns: Sequence[int] = ()

    def url(self, home: str) -> str:
        raise NotImplementedError

    def count(self, tx: KeyValueTx, event: bytes, worker: int) -> None:
        tx.put(event, _one_more(tx.get(event), worker))

    async def count_async(self, tx: AsyncKeyValueTx, event: bytes, worker: int) -> None:
        tx.put(event, _one_more(await tx.get(event), worker))

    def read(self, home: str, partitions: Iterable[Partition]) -> dict[bytes, Counted]:
        found: dict[bytes, Counted] = {}
        with closing(open_store(self.url(home))) as store:
            store.prepare()
            for at in partitions:
                store.open(at, NO_ID)
                tx: KeyValueTx = store.transaction(at).begin()  # type: ignore[assignment]
                for event, row in tx.scan():
                    times, worker = _ROW.unpack(row)
                    earlier = found[event].times if event in found else 0
                    found[event] = Counted(earlier + times, worker)
                store.release(at)
        return found


class RocksDB(_Counts):
    """Counts beside the markers, in the database of the partition."""

    def serve(self, home: Path) -> AbstractContextManager[object]:
        return nullcontext()

    def url(self, home: str) -> str:
        return f"rocksdb://{Path(home).absolute()}/state"


class Redis(_Counts):
    """A Valkey of the run's own, that syncs every write; killed every `kill_seconds`, if ever."""

    def __init__(self, kill_seconds: float = 0.0, options: str = "") -> None:
        self._kill_seconds = kill_seconds
        self._options = options
        self._over = threading.Event()
        self._striker: threading.Thread | None = None

    @contextmanager
    def serve(self, home: Path) -> Iterator[None]:
        from effectonce.testing.servers import ValkeyServer

        def strike() -> None:
            while not self._over.wait(self._kill_seconds):
                server.kill()
                killed.append(time.monotonic_ns())
                server.restart()

        killed: list[int] = []
        self.killed_ns = killed
        self._over.clear()
        with ValkeyServer.start(home / "valkey") as server:
            (home / "url").write_text(server.url)
            if self._kill_seconds:
                self._striker = threading.Thread(target=strike)
                self._striker.start()
            try:
                yield
            finally:
                self._leave_alone()

    def _leave_alone(self) -> None:
        self._over.set()
        if self._striker is not None:
            self._striker.join()
            self._striker = None

    def read(self, home: str, partitions: Iterable[Partition]) -> dict[bytes, Counted]:
        self._leave_alone()
        return super().read(home, partitions)

    def url(self, home: str) -> str:
        return f"{(Path(home) / 'url').read_text()}?durability=host{self._options}"


STORES: Mapping[str, ChaosStore] = {
    "rocksdb": RocksDB(),
    "redis": Redis(),
    "redis-killed": Redis(kill_seconds=3.0),
    "redis-local-index": Redis(kill_seconds=3.0, options="&layout=partition&index=local"),
}
