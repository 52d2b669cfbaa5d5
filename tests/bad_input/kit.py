"""What the tests of bad input share: a topic of two partitions, a group, a state folder.

    ids = flow.send(3)                     proper events into partition 0
    flow.produce(b"v", headers=...)        a record as it is, bad or good
    flow.job()                             one consumer, to the end of the log
    with flow.member() as member:          one that stays, on a thread of its own
    flow.effects()                         what the store says took effect, and how often

The usual handler adds 1 to the event's own row through `tx`; an event without an ID counts under
its offset. Rows named "filler ..." are not effects. Every ID that `send` makes is remembered, and
none may show in a log line (conftest).
"""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from confluent_kafka import Producer

import effectonce as eo
from effectonce.model import Partition
from effectonce.ports import Store
from effectonce.stores.encoding import USER
from effectonce.stores.rocksdb import RocksDBStore
from effectonce.stores.rocksdb_beside import read_beside_owner
from effectonce.stores.rocksdb_files import Folder, partition_numbers, topic_folder
from effectonce.stores.rocksdb_image import all_rows
from effectonce.stores.rocksdb_options import Shared

Handler = Callable[..., object]
Headers = Sequence[tuple[str, bytes | None]]

KIP_848: Mapping[str, object] = {"group.protocol": "consumer"}
"""The usual protocol: the mock broker misses a classic member that left only after 44 s."""
CLASSIC: Mapping[str, object] = {"session.timeout.ms": 1500}

PATIENCE_SECONDS = 30.0
"""How long a test waits for what must happen; it is only ever used up by a failure."""

QUICK_RETRY = eo.Retry(attempts=2, wait_initial=eo.Retry().wait_initial / 100)


def name_of(event: eo.Event) -> str:
    """The event's ID, or where it stands if it has none."""
    try:
        return event.id
    except LookupError:
        return f"{event.partition}@{event.offset}"


def count(event: eo.Event, tx: eo.KeyValueTx) -> None:
    """The usual effect: one more in the event's own row."""
    key = name_of(event).encode()
    tx.put(key, b"%d" % (int(tx.get(key) or b"0") + 1))


class Watch:
    """All that happened in this process, hook events and notes, and how to wait for more."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._seen: list[object] = []

    def note(self, what: object) -> None:
        with self._changed:
            self._seen.append(what)
            self._changed.notify_all()

    def of(self, kind: type[Any]) -> list[Any]:
        with self._changed:
            return [each for each in self._seen if isinstance(each, kind)]

    def until(self, what: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until `what()` is true; asked again after every note."""
        with self._changed:
            assert self._changed.wait_for(what, seconds), f"never happened; seen: {self._seen}"


class Flow:
    """One topic, one group and one state folder."""

    driver: Callable[[Mapping[str, Any], Sequence[str], eo.Once], Any] = eo.OnceConsumer
    """What consumes: `OnceConsumer`, or another with its face."""

    def __init__(self, bootstrap: str, topic: str, state: Path, watch: Watch) -> None:
        self.bootstrap = bootstrap
        self.topic = topic
        self.state = state
        self.watch = watch
        self.group = f"group-{uuid.uuid4().hex[:8]}"
        self.ids: list[str] = []
        self._producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 1, "log_level": 0})

    # -- Kafka ---------------------------------------------------------------------------------

    def send(self, events: int = 1, partition: int = 0) -> list[str]:
        """Produce proper events; returns their IDs."""
        made = [f"event-{uuid.uuid4().hex}" for _ in range(events)]
        self.ids += made
        for each in made:
            self.produce(b"payload of " + each.encode(), headers=id_header(each),
                         partition=partition)  # fmt: skip
        return made

    def produce(
        self,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Headers = (),
        partition: int = 0,
        timestamp: int = 0,
    ) -> None:
        """Produce one record as it is. A timestamp of 0 is now."""
        self._producer.produce(
            self.topic, value, key, partition, headers=list(headers), timestamp=timestamp
        )
        assert self._producer.flush(PATIENCE_SECONDS) == 0

    def at(self, partition: int = 0) -> Partition:
        return Partition(self.group, self.group, self.topic, partition)

    # -- consumers -----------------------------------------------------------------------------

    @contextmanager
    def consumer(
        self,
        *,
        config: Mapping[str, object] | None = None,
        store: str | Store | None = None,
        topics: Sequence[str] = (),
        **policy: Any,
    ) -> Iterator[eo.OnceConsumer]:
        """A consumer with the usual policy, and what `policy` says otherwise."""
        settings = {
            "bootstrap.servers": self.bootstrap,
            "group.id": self.group,
            "log_level": 0,
            **(KIP_848 if config is None else config),
        }
        opened = store or RocksDBStore(self.state)
        usual = {
            "identify": eo.header("event-id"),
            "effects": eo.InStore(),
            "retry": QUICK_RETRY,
        }
        once = eo.Once(opened, **{**usual, **policy})
        try:
            with self.driver(settings, [self.topic, *topics], once) as consumer:
                yield consumer
        finally:
            once.store.close()

    def job(self, handler: Handler = count, **how: Any) -> None:
        """One consumer, to the end of the log."""
        with self.consumer(**how) as consumer:
            consumer.run(handler, until=eo.END)

    def member(self, handler: Handler = count, **how: Any) -> Member:
        """One that stays until it is stopped; to be used in a `with`."""
        return Member(self, handler, how)

    # -- what came of it -----------------------------------------------------------------------

    def effects(self) -> Counter[str]:
        """By event ID: how often it took effect in the store, as committed."""
        found: Counter[str] = Counter()
        for number in partition_numbers(
            topic_folder(self.state, self.group, self.group, self.topic)
        ):
            folder = Folder(self.state, self.at(number))
            rows = read_beside_owner(folder, Shared(), lambda db: list(all_rows(db, USER)))
            for key, value in rows:
                if not key.startswith(USER + b"filler "):
                    found[key.removeprefix(USER).decode()] += int(value)
        return found

    def shown(self, text: str) -> list[str]:
        """The IDs that a text shows in the clear."""
        return [each for each in self.ids if each in text]


class Member:
    """A consumer on a thread of its own: a member of the group while the `with` lasts."""

    def __init__(self, flow: Flow, handler: Handler, how: Mapping[str, Any]) -> None:
        self._flow = flow
        self._handler = handler
        self._how = how
        self._made = threading.Event()
        self._thread = threading.Thread(target=self._run, name="member")
        self.consumer: eo.OnceConsumer
        self.error: BaseException | None = None

    def _run(self) -> None:
        try:
            with self._flow.consumer(**self._how) as self.consumer:
                self._made.set()
                self.consumer.run(self._handler)
        except BaseException as error:  # noqa: BLE001 - the test's to judge
            self.error = error
        finally:
            self._made.set()
            self._flow.watch.note(self)

    def join(self) -> None:
        """Wait until it ends by itself."""
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive(), "the member hangs"

    def errors(self) -> list[str]:
        """What its partitions wait for, or stopped at."""
        return [row.error for row in self.consumer.health().partitions if row.error]

    def start(self) -> None:
        self._thread.start()
        assert self._made.wait(PATIENCE_SECONDS)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if hasattr(self, "consumer"):
            self.consumer.stop()
        self.join()
        if self.error is not None and error is None:
            raise self.error


def id_header(event_id: str | bytes) -> Headers:
    return [("event-id", event_id if isinstance(event_id, bytes) else event_id.encode())]


def once_each(ids: Iterable[str]) -> Counter[str]:
    """The effects of events each of which took effect once."""
    return Counter(dict.fromkeys(ids, 1))


@contextmanager
def stops(error: type[eo.EffectOnceError], *says: str) -> Iterator[None]:
    """The body must raise this error, in words that hold every part of `says`."""
    with pytest.raises(error) as raised:
        yield
    for part in says:
        assert part in str(raised.value), f"{part!r} is not in: {raised.value}"
