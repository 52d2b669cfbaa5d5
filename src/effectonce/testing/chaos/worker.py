"""One consumer process of a run: `python -m effectonce.testing.chaos.worker JOB`.

Its handler makes one effect an event. In the store that is deliberately not idempotent (read n,
write n + 1); outside, it is a call to the witness. Either way the witness hears of each effect
and, through the hooks, of each commit, so the journal tells what a kill fell between.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any, Final, TypeAlias

import effectonce as eo
from effectonce.errors import StoreUnavailable
from effectonce.ports import Store
from effectonce.testing.chaos.journal import Kind
from effectonce.testing.chaos.plan import Assignor, Mode
from effectonce.testing.chaos.stores import STORES
from effectonce.testing.chaos.target import Target

ASK_SECONDS: Final = 0.1

SCOPE = "chaos"
HEADER = "event-id"


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is told, as the JSON of its only argument."""

    number: int
    bootstrap: str
    topic: str
    group: str
    mode: str
    store: str
    driver: str
    assignor: str
    batch: int
    session_seconds: float
    home: str
    socket_path: str

    def dump(self) -> str:
        return json.dumps(asdict(self))


Driver: TypeAlias = Callable[[Job, Target], None]
"""Consumes until SIGTERM."""


def confluent(job: Job, target: Target) -> None:
    """effectonce's own consumer on confluent-kafka."""
    eo.hooks.set_hooks([journalled(target)])
    store = STORES[job.store]
    in_store = Mode(job.mode) is Mode.IN_STORE

    def count(event: eo.Event, tx: eo.KeyValueTx) -> None:
        event_id = event_key(event.id)
        store.count(tx, event_id, job.number)
        target.effect(event.partition, event.offset, event_id)

    def call(event: eo.Event) -> None:
        target.effect(event.partition, event.offset, event_key(event.id))

    once = policy(job)
    wait_for(once.store)
    with eo.OnceConsumer(client_config(job), [job.topic], once) as consumer:
        consumer.run(count if in_store else call)


def aiokafka(job: Job, target: Target) -> None:
    """effectonce's own consumer on aiokafka."""
    eo.hooks.set_hooks([journalled(target)])
    store = STORES[job.store]

    async def count(event: eo.Event, tx: eo.AsyncKeyValueTx) -> None:
        event_id = event_key(event.id)
        await store.count_async(tx, event_id, job.number)
        target.effect(event.partition, event.offset, event_id)

    async def call(event: eo.Event) -> None:
        target.effect(event.partition, event.offset, event_key(event.id))

    async def consume() -> None:
        async with eo.AsyncOnceConsumer(
            job.topic, once=policy(job), **aiokafka_config(job)
        ) as consumer:
            await consumer.run(count if Mode(job.mode) is Mode.IN_STORE else call)

    asyncio.run(consume())


def policy(job: Job) -> eo.Once:
    """What the run's mode promises."""
    in_store = Mode(job.mode) is Mode.IN_STORE
    return eo.Once(
        STORES[job.store].url(job.home),
        identify=eo.header(HEADER),
        effects=eo.InStore() if in_store else eo.Outside(on_doubt="repeat"),
        scope=SCOPE,
        limits=eo.Limits(batch=job.batch),
    )


def wait_for(store: Store) -> None:
    """As whoever starts it anew would: a server may be down, or loading."""
    while True:
        try:
            store.prepare()
            return
        except StoreUnavailable:
            time.sleep(ASK_SECONDS)


DRIVERS: Mapping[str, Driver] = {"confluent": confluent, "aiokafka": aiokafka}


def driver_named(name: str) -> Driver:
    """One of `DRIVERS`, or any `module:function`: how a test brings a consumer of its own."""
    if name in DRIVERS:
        return DRIVERS[name]
    module, _, function = name.partition(":")
    driver: Driver = getattr(import_module(module), function)
    return driver


def client_config(job: Job) -> dict[str, object]:
    """The client's configuration for the group that the run asks for."""
    config: dict[str, object] = {"bootstrap.servers": job.bootstrap, "group.id": job.group}
    assignor = Assignor(job.assignor)
    if assignor is Assignor.KIP848:  # its session and heartbeat are the broker's to say
        return config | {"group.protocol": "consumer"}
    session_ms = int(job.session_seconds * 1000)
    return config | {
        "partition.assignment.strategy": assignor.value,
        "session.timeout.ms": session_ms,
        "heartbeat.interval.ms": session_ms // 4,
    }


def aiokafka_config(job: Job) -> dict[str, Any]:
    """The same for aiokafka, whose assignors are all eager ones."""
    if Assignor(job.assignor) is not Assignor.RANGE:
        raise SystemExit(f"aiokafka has no assignor like {job.assignor}")
    session_ms = int(job.session_seconds * 1000)
    return {
        "bootstrap_servers": job.bootstrap,
        "group_id": job.group,
        "session_timeout_ms": session_ms,
        "heartbeat_interval_ms": session_ms // 4,
        "rebalance_timeout_ms": 10 * session_ms,
    }


def event_key(event_id: str) -> bytes:
    """As the journal has it."""
    return bytes.fromhex(event_id.replace("-", ""))


def journalled(target: Target) -> Callable[[eo.hooks.HookEvent], None]:
    """A hook that tells the witness what the consumer has and has done."""

    def note(event: eo.hooks.HookEvent) -> None:
        match event:
            case eo.hooks.BatchCommitted(at=at):
                repeats = event.repeats + event.below
                target.note(Kind.COMMITTED, at.number, event.next, event.fresh, repeats)
            case eo.hooks.PartitionAssigned(at=at):
                target.note(Kind.ASSIGNED, at.number)
            case eo.hooks.PartitionBegan(at=at):
                target.note(Kind.BEGAN, at.number, event.offset)
            case eo.hooks.PartitionReleased(at=at):
                target.note(Kind.RELEASED, at.number)
            case _:
                pass

    return note


def main() -> None:
    """Run the job of the command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    job = Job(**json.loads(sys.argv[1]))
    faulthandler.enable()
    # once it says that it is there it may be asked to leave, be it before its consumer listens
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    driver_named(job.driver)(job, Target(job.socket_path, job.number))


if __name__ == "__main__":
    main()
