"""The consumers that are measured: each in a process of its own, on a topic fetched ahead.

    python -m benchmarks.contenders JOB       a Job as JSON; prints a Run as JSON

Before the clock starts the client holds the whole topic, so that the broker rests and the thread
that consumes is the bottleneck. It stops when the last message is dealt with, its commit included.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final, TypeAlias

from confluent_kafka import Consumer, Message, TopicPartition

import effectonce as eo
from benchmarks.job import Job, Run
from benchmarks.loads import PARTITIONS
from benchmarks.stored import BATCH, GROUP, TTL_SECONDS, once_on
from effectonce.kafka import ConfluentClient
from effectonce.ports import Records

LOOK_SECONDS: Final = 0.02
"""Between two looks while the topic is fetched ahead. librdkafka speaks of it only inside a poll,
and a poll takes a message along, so it is not asked all the time."""


class FetchedAhead:
    """Whether the client holds the whole topic, as its own statistics say."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self.full = False
        self.config: Mapping[str, Any] = {
            "statistics.interval.ms": 50,
            "stats_cb": self._hear,
            "queued.min.messages": 10_000_000,
            "queued.max.messages.kbytes": 2_097_151,
        }

    def _hear(self, statistics: str) -> None:
        if self.full:
            return
        partitions = json.loads(statistics)["topics"].get(self._topic, {}).get("partitions", {})
        rows = [partitions.get(str(number)) for number in range(PARTITIONS)]
        self.full = all(row and row["next_offset"] == row["hi_offset"] >= 0 for row in rows)


# -- loops written by hand -------------------------------------------------------------------------

Handle: TypeAlias = Callable[[list[Message]], int]
"""Deals with a batch; returns how many events it gave to the handler."""


def nothing(event: object) -> None:
    """The empty handler."""


def bare(consumer: Consumer, job: Job) -> Handle:
    """What no consumer can do without."""

    def handle(messages: list[Message]) -> int:
        for message in messages:
            message.headers()
            message.value()
        nothing(messages)
        return len(messages)

    return handle


def id_of(message: Message) -> bytes:
    headers: Any = message.headers()  # the stubs know headers that the client never gives
    ((_, event_id),) = headers
    return bytes(event_id)


def setnx_loop(consumer: Consumer, job: Job) -> Handle:
    """What most write: a round trip a message, a commit to Kafka a batch."""
    import redis

    client = redis.Redis.from_url(job.state)

    def handle(messages: list[Message]) -> int:
        handled = 0
        for message in messages:
            event_id = id_of(message)
            if client.set(event_id, 1, nx=True, ex=TTL_SECONDS):
                nothing(message.value())
                handled += 1
        consumer.commit(asynchronous=True)
        return handled

    return handle


def setnx_pipelined(consumer: Consumer, job: Job) -> Handle:
    """The same with a round trip a batch."""
    import redis

    client = redis.Redis.from_url(job.state)

    def handle(messages: list[Message]) -> int:
        pipeline = client.pipeline(transaction=False)
        for message in messages:
            pipeline.set(id_of(message), 1, nx=True, ex=TTL_SECONDS)
        handled = 0
        for message, is_new in zip(messages, pipeline.execute(), strict=True):
            if is_new:
                nothing(message.value())
                handled += 1
        consumer.commit(asynchronous=True)
        return handled

    return handle


def run_by_hand(job: Job, contender: Callable[[Consumer, Job], Handle]) -> Run:
    ahead = FetchedAhead(job.topic)
    consumer = Consumer(
        {
            "bootstrap.servers": job.bootstrap,
            "group.id": f"{GROUP}-by-hand",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            **ahead.config,
        }
    )
    consumer.assign([TopicPartition(job.topic, number, 0) for number in range(PARTITIONS)])
    handle = contender(consumer, job)
    early: list[Message] = []
    while not ahead.full:
        message = consumer.poll(LOOK_SECONDS)
        if message is not None:
            early.append(message)
            time.sleep(LOOK_SECONDS)
    handled = handle(early)
    left = timed = job.messages - len(early)
    began = time.perf_counter()
    while left:
        # it waits the whole second unless as many arrive as were asked for
        messages = consumer.consume(min(BATCH, left), 1.0)
        handled += handle(messages)
        left -= len(messages)
    seconds = time.perf_counter() - began
    consumer.close()
    return Run(timed, seconds, handled)


# -- effectonce ------------------------------------------------------------------------------------


class TimedClient(ConfluentClient):
    """The real client, timed from the first fetch of a full queue until all of it is settled."""

    def __init__(self, job: Job) -> None:
        self._ahead = FetchedAhead(job.topic)
        self._began = self._ended = 0.0
        self._took_some = False
        self.timed = 0
        super().__init__(
            {"bootstrap.servers": job.bootstrap, "group.id": GROUP, **self._ahead.config}
        )

    def fetch(self, limit: int, timeout_seconds: float) -> Sequence[Records]:
        if not self._ahead.full:
            time.sleep(LOOK_SECONDS)
            return super().fetch(1, timeout_seconds)
        self._began = self._began or time.perf_counter()
        self.settled()
        fetched = super().fetch(limit, timeout_seconds)
        self._took_some = bool(fetched)
        self.timed += sum(map(len, fetched))
        return fetched

    def settled(self) -> None:
        """Whoever fetches again, or returns, has settled what came before."""
        if self._took_some:
            self._took_some, self._ended = False, time.perf_counter()

    @property
    def seconds(self) -> float:
        return self._ended - self._began


def run_effectonce(job: Job, by: str) -> Run:
    """An empty handler, given batches or single events."""
    handled = 0

    def handle_batch(batch: eo.Batch) -> None:
        nonlocal handled
        handled += len(batch)

    def handle_event(event: eo.Event) -> None:
        nonlocal handled
        handled += 1

    client = TimedClient(job)
    config = {"bootstrap.servers": job.bootstrap, "group.id": GROUP}
    with eo.OnceConsumer(config, [job.topic], once_on(job.state), client=client) as consumer:
        if by == "batch":
            consumer.run_batches(handle_batch, size=job.size, until=eo.END)
        else:
            consumer.run(handle_event, until=eo.END)
        client.settled()
    return Run(client.timed, client.seconds, handled)


CONTENDERS: Final[Mapping[str, Callable[[Job], Run]]] = {
    "bare": lambda job: run_by_hand(job, bare),
    "setnx_loop": lambda job: run_by_hand(job, setnx_loop),
    "setnx_pipelined": lambda job: run_by_hand(job, setnx_pipelined),
    "batch": lambda job: run_effectonce(job, "batch"),
    "event": lambda job: run_effectonce(job, "event"),
}


def main() -> int:
    job = Job(**json.loads(sys.argv[1]))
    print(json.dumps(asdict(CONTENDERS[job.contender](job))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
