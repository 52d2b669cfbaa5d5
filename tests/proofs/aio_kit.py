"""The async driver behind the sync one's face, so that every proof is written once.

    with Driven(config, topics, once) as consumer:     as `OnceConsumer(config, topics, once)`
        consumer.run(handler, until=eo.END)

An event loop in a thread of its own runs the consumer; the test's plain handler runs in another
thread, as one that blocks would have to, and its `tx` awaits in that loop.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from threading import Thread
from types import TracebackType
from typing import Any, Self, TypeVar

import effectonce as eo
from effectonce.arguments import Until

T = TypeVar("T")

NAMES: Mapping[str, str] = {
    "bootstrap.servers": "bootstrap_servers",
    "group.id": "group_id",
    "session.timeout.ms": "session_timeout_ms",
    "fetch.message.max.bytes": "max_partition_fetch_bytes",
}
"""Settings of the proofs that aiokafka has too; the others have no counterpart there."""


class Driven:
    """An `AsyncOnceConsumer`, driven from the outside."""

    def __init__(self, config: Mapping[str, Any], topics: Sequence[str], once: eo.Once) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="aio-loop", daemon=True)
        self._thread.start()
        self._consumer = consumer(config, topics, once)
        self.health = self._consumer.health
        self.stop = self._consumer.stop

    def run(self, handler: Any, *, until: Until = Until.STOPPED, **lanes: Any) -> None:
        self._now(self._consumer.run(awaited(handler, self._loop), until=until, **lanes))

    def run_batches(
        self, handler: Any, *, size: int | None = None, until: Until = Until.STOPPED
    ) -> None:
        self._now(self._consumer.run_batches(awaited(handler, self._loop), size=size, until=until))

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return _Batch(self._now(self._consumer.__anext__()), self._loop)
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        self._now(self._consumer.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _now(self, work: Coroutine[Any, Any, T]) -> T:
        async def kept() -> tuple[Any, BaseException | None]:
            try:
                return await work, None
            except BaseException as error:  # noqa: BLE001 - a future would not carry each of them
                return None, error

        answer, error = asyncio.run_coroutine_threadsafe(kept(), self._loop).result()
        if error is not None:
            raise error
        return answer  # type: ignore[no-any-return]


def consumer(
    config: Mapping[str, Any], topics: Sequence[str], once: eo.Once
) -> eo.AsyncOnceConsumer:
    """The consumer that these settings of confluent-kafka's stand for, with a short session."""
    settings = {NAMES[name]: value for name, value in config.items() if name in NAMES}
    return eo.AsyncOnceConsumer(*topics, once=once, **{"session_timeout_ms": 1500, **settings})


def run(config: Mapping[str, Any], topics: Sequence[str], once: eo.Once, handler: Any) -> None:
    """As a program would: in a loop of the main thread, which hears SIGTERM."""

    async def main() -> None:
        async with consumer(config, topics, once) as ours:
            await ours.run(awaited(handler, asyncio.get_running_loop()))

    asyncio.run(main())


def awaited(handler: Any, loop: asyncio.AbstractEventLoop) -> Any:
    """A plain handler as a coroutine function, run in a thread: it may block."""

    async def one(event: Any) -> object:
        return await asyncio.to_thread(handler, event)

    async def two(event: Any, tx: Any) -> object:
        return await asyncio.to_thread(handler, event, _Tx(tx, loop))

    return one if len(inspect.signature(handler).parameters) == 1 else two


class _Tx:
    """A `KeyValueTx` over an `AsyncKeyValueTx`, for another thread than the loop's."""

    def __init__(self, tx: eo.AsyncKeyValueTx, loop: asyncio.AbstractEventLoop) -> None:
        self._tx = tx
        self._loop = loop

    def get(self, key: bytes) -> bytes | None:
        return asyncio.run_coroutine_threadsafe(self._tx.get(key), self._loop).result()

    def put(self, key: bytes, value: bytes) -> None:
        self._tx.put(key, value)

    def delete(self, key: bytes) -> None:
        self._tx.delete(key)

    def scan(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        async def rows() -> list[tuple[bytes, bytes]]:
            return [row async for row in self._tx.scan(prefix)]

        return iter(asyncio.run_coroutine_threadsafe(rows(), self._loop).result())


class _Event:
    """An event whose `with` gives such a `tx`."""

    def __init__(self, event: eo.Event, loop: asyncio.AbstractEventLoop) -> None:
        self._event = event
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._event, name)

    def __enter__(self) -> Any:
        return _Tx(self._event.__enter__(), self._loop)  # type: ignore[arg-type]

    def __exit__(self, *error: Any) -> None:
        self._event.__exit__(*error)


class _Batch:
    def __init__(self, batch: eo.Batch, loop: asyncio.AbstractEventLoop) -> None:
        self._batch = batch
        self._loop = loop

    def __iter__(self) -> Iterator[_Event]:
        return (_Event(event, self._loop) for event in self._batch)

    def __getitem__(self, index: int) -> _Event:
        return _Event(self._batch[index], self._loop)
