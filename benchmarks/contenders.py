"""The consumers that are measured: each in a process of its own.

    python -m benchmarks.contenders JOB       a Job as JSON; prints a Run as JSON, and before each
                                              of its turns a line, then waits for one (turns.py)

Before the clock starts the client holds the whole topic, so that the broker rests and the thread
that consumes is the bottleneck. It stops when the last message is dealt with, its commit included.
A live one (`ahead` false) has librdkafka's own queue settings and fetches while it runs, as in
production: its clock starts once the first message has come and been dealt with.
"""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, Final

from confluent_kafka import Consumer, Message

import effectonce as eo
from benchmarks.job import Job, Run
from benchmarks.stored import BATCH, GROUP, TTL_SECONDS, once_on
from effectonce.cli.bench_reading import (
    AT_ONCE,
    Handle,
    Sample,
    TimedClient,
    Turns,
    bare,
    by_hand,
    nothing,
    take_sample,
)


def whole(job: Job) -> Sample:
    """The topic as it is."""
    return take_sample({"bootstrap.servers": job.bootstrap, "group.id": GROUP}, job.topic, 1 << 62)


MIXED_BYTES: Final = 16_384
"""More than a batch of the producer's, less than two (loads.py)."""


def client_config(job: Job) -> dict[str, Any]:
    config: dict[str, Any] = {"bootstrap.servers": job.bootstrap}
    if job.mixed:  # a batch of the producer's for each partition, and the next partition's
        config["max.partition.fetch.bytes"] = MIXED_BYTES
    return config


TURN: Final = "turn"
"""Said before each."""


def turns_of(job: Job) -> Turns:
    if not job.turn:
        return AT_ONCE

    def wait() -> None:
        print(TURN, flush=True)
        sys.stdin.readline()

    return Turns(job.turn, wait, _at_rest(job))


def _at_rest(job: Job) -> Callable[[], object] | None:
    """Returns once Valkey has done all that was sent, of which our store reads the answer later.

    It does one thing after another, so a question behind it all will do. What is left over of the
    client's work is not done beside the server's then, which is against us.
    """
    if not job.state.startswith("unix:"):
        return None
    import redis

    return redis.Redis.from_url(job.state.partition("?")[0]).ping


# -- loops written by hand -------------------------------------------------------------------------


def id_of(message: Message) -> bytes:
    headers: Any = message.headers()  # the stubs know headers that the client never gives
    ((_, event_id),) = headers
    return bytes(event_id)


def bare_loop(consumer: Consumer, job: Job) -> Handle:
    """What no consumer can do without."""
    return bare(consumer)


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
    done = by_hand(
        {**client_config(job), "group.id": f"{GROUP}-by-hand"},
        whole(job),
        job.messages,
        lambda consumer: contender(consumer, job),
        batch=BATCH,
        live=not job.ahead,
        turns=turns_of(job),
    )
    return Run(done.messages, done.seconds, done.handled)


# -- effectonce ------------------------------------------------------------------------------------


ACCOUNT_BYTES: Final = 3
"""Of the event ID, in hex: rows of 4,096 accounts are written over and over."""


def run_effectonce(job: Job, by: str) -> Run:
    """A handler that does nothing, or writes a row an event, given batches or single events."""
    handled = 0

    def handle_batch(batch: eo.Batch) -> None:
        nonlocal handled
        handled += len(batch)

    def handle_event(event: eo.Event) -> None:
        nonlocal handled
        handled += 1

    def write_batch(batch: eo.Batch, tx: eo.KeyValueTx) -> None:
        for event in batch:
            write_event(event, tx)

    def write_event(event: eo.Event, tx: eo.KeyValueTx) -> None:
        nonlocal handled
        handled += 1
        assert event.key is not None
        assert event.value is not None
        tx.put(event.key[:ACCOUNT_BYTES], event.value)

    handlers: dict[str, Callable[..., None]] = {
        "batch": handle_batch,
        "event": handle_event,
        "batch in store": write_batch,
        "event in store": write_event,
    }
    config = {**client_config(job), "group.id": GROUP}
    # others run beside it, so to Kafka its group is its own; to the store it is as the rows have it
    own = {**config, "group.id": f"{GROUP}-{uuid.uuid4().hex[:8]}"}
    client = TimedClient(own, whole(job), live=not job.ahead, turns=turns_of(job))
    in_store = by.endswith("in store")
    once = once_on(job.state, job.size, eo.InStore()) if in_store else once_on(job.state, job.size)
    with eo.OnceConsumer(config, [job.topic], once, client=client) as consumer:
        if by.startswith("batch"):
            consumer.run_batches(handlers[by], until=eo.END)
        else:
            consumer.run(handlers[by], until=eo.END)
        client.settled()
    return Run(client.timed, client.watch.seconds, handled)


CONTENDERS: Final[Mapping[str, Callable[[Job], Run]]] = {
    "bare": lambda job: run_by_hand(job, bare_loop),
    "setnx_loop": lambda job: run_by_hand(job, setnx_loop),
    "setnx_pipelined": lambda job: run_by_hand(job, setnx_pipelined),
    **{
        by: partial(run_effectonce, by=by)
        for by in ("batch", "event", "batch in store", "event in store")
    },
}


def main() -> int:
    job = Job(**json.loads(sys.argv[1]))
    print(json.dumps(asdict(CONTENDERS[job.contender](job))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
