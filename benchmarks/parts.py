"""The parts of the benchmark that are a throughput: which load, and who runs on it.

    part             load
    0 1 10 50 100    so many percent of the deliveries are repeats, drawn from all that came before
    near far         10% repeats: of the last thousand IDs, or of stored keys alone
    keys_1e5 .. 5e7  so many stored keys, which no delivery has touched since they were loaded
    mixed            1e7 stored keys, and in a batch of 500 all four partitions, 50 records in a row
    live             the topic is fetched while it is consumed, beside the one fetched ahead
    value_100 ..     values of 100 bytes, 1 KB, 10 KB
    sync             an fsync a batch
    in_store         effects that commit with their marker: a row an event
    redis            the shared store
    peers            what others do

`ONLY=` names a row of this table (`keys` and `values` for all sizes of theirs).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from benchmarks.job import Contender
from benchmarks.loads import VALUE_BYTES, Load, Reach, label
from benchmarks.peers import field as peers

STORED: Final = 1_000_000
REPEATS: Final = (0, 1, 10, 50, 100)
KEYS: Final = (100_000, 1_000_000, 10_000_000, 50_000_000)
VALUES: Final = (100, 1_000, 10_000)
TOPIC_BYTES: Final = 600_000_000
"""A topic fetched ahead must fit into librdkafka's queue (2 GB) and into a small machine."""

Field: TypeAlias = tuple[Contender, ...]

BARE: Final = Contender("bare", "bare", dedupes=False)
ROCKSDB: Final = (
    Contender("rocksdb_1e6_batch500", "batch", store="rocksdb"),
    Contender("rocksdb_1e6_batch1000", "batch", size=1000, store="rocksdb"),
    Contender("rocksdb_1e6_event", "event", size=1000, store="rocksdb"),
)
OURS: Final = ROCKSDB[1]
"""Who the peers are measured against."""
EVENT: Final = ROCKSDB[2]
REDIS: Final = (
    Contender("redis_1e6_batch500", "batch", store="redis"),
    Contender("redis_1e6_batch1000", "batch", size=1000, store="redis"),
)
REDIS_LOCAL_INDEX: Final = Contender(
    "redis_local_index", "batch", size=1000, store="redis local index"
)
BY_HAND: Final = (
    Contender("setnx_pipelined", "setnx_pipelined", part=0.2, store="by hand"),
    Contender("setnx_loop", "setnx_loop", part=0.04, store="by hand"),
)
MIXED: Final = replace(ROCKSDB[0], name="rocksdb_1e7_mixed")
LIVE: Final = (
    replace(BARE, name="bare_live", ahead=False),
    replace(OURS, name="rocksdb_1e6_batch1000_live", ahead=False, beside="bare_live"),
    replace(EVENT, name="rocksdb_1e6_event_live", ahead=False, beside="bare_live"),
)
SYNC: Final = tuple(
    Contender(f"rocksdb_sync_{size}", "batch", size=size, store="rocksdb synced")
    for size in (500, 1000, 2000)
)
IN_STORE: Final = (
    Contender("rocksdb_in_store_batch1000", "batch in store", size=1000, store="rocksdb"),
    Contender("rocksdb_in_store_event", "event in store", size=1000, store="rocksdb"),
    Contender("redis_in_store_batch1000", "batch in store", size=1000, store="redis"),
)

_SHARED_NAMES: Final = {each.name for each in (*ROCKSDB, *REDIS)}
"""Who runs in several parts: the part says which of its figures this one is."""


@dataclass(frozen=True, slots=True)
class Part:
    """One topic for each size that is asked for, and who runs on it."""

    name: str
    only: str
    """What `ONLY=` calls it."""
    field: Field
    repeats: int = 10
    reach: Reach = "any"
    stored: int = STORED
    value_bytes: int = VALUE_BYTES
    mixed: bool = False
    ending: str = ""
    """What the keys of contenders that run in several parts end in."""
    quick: bool = False

    def load(self, messages: int, part: float, warm_up: int) -> Load:
        """The topic of those contenders whose share of the messages and warm-up these are."""
        fits = min(messages, TOPIC_BYTES // self.value_bytes)
        name = f"bench-{self.name}-{part}" + (f"-after-{warm_up}" if warm_up else "")
        return Load(
            name,
            int(fits * part) + warm_up,
            self.repeats,
            self.reach,
            self.value_bytes,
            self.stored,
            self.mixed,
        )

    @property
    def in_turns(self) -> bool:
        """Whether its contenders can be held between one batch and the next."""
        return self.only not in ("live", "peers")

    @property
    def known(self) -> int:
        """How many of the stored keys its repeats are drawn from: peers start with none."""
        return 0 if self.name == "peers" else self.stored

    def key(self, contender: str) -> str:
        """The name of that contender's figure."""
        if contender in _SHARED_NAMES:
            return f"share_{contender}{self.ending}"
        if self.name == "redis" and contender.startswith("setnx"):
            return f"share_{contender}_beside_redis"
        return f"share_{contender}"


def parts(warm_up: int) -> list[Part]:
    """All of them, in the order in which they are measured."""
    return [
        *(
            Part(
                str(repeats),
                str(repeats),
                (BARE, *ROCKSDB, *(BY_HAND if repeats == 10 else ())),
                repeats,
                ending=f"_repeats_{repeats}",
                quick=repeats == 10,
            )
            for repeats in REPEATS
        ),
        Part(
            "redis",
            "redis",
            (BARE, *REDIS, REDIS_LOCAL_INDEX, *BY_HAND),
            ending="_repeats_10",
            quick=True,
        ),
        Part("near", "near", (BARE, OURS, EVENT), reach="near", ending="_near"),
        Part("far", "far", (BARE, OURS, EVENT), reach="far", ending="_far"),
        Part("mixed", "mixed", (BARE, MIXED), stored=10**7, mixed=True),
        Part("live", "live", (BARE, OURS, *LIVE), ending="_beside_live"),
        *(
            Part(
                f"value_{size}",
                "values",
                (BARE, OURS, EVENT),
                value_bytes=size,
                ending=f"_value_{size}",
            )
            for size in VALUES
        ),
        Part("sync", "sync", (BARE, *SYNC)),
        Part("in_store", "in_store", (BARE, *IN_STORE)),
        *(_cold(stored) for stored in KEYS),
        Part(
            "peers",
            "peers",
            (BARE, OURS, *peers.contenders(warm_up)),
            ending="_beside_peers",
        ),
    ]


def _cold(stored: int) -> Part:
    name = f"rocksdb_{label(stored)}_cold"
    field = (BARE, replace(OURS, name=name), replace(EVENT, name=f"{name}_event"))
    return Part(f"keys_{label(stored)}", "keys", field, stored=stored, quick=stored == 10**7)


def chosen(only: str | None, quick: bool, warm_up: int) -> list[Part]:
    """What is measured: what `only` names, else the headline ones if `quick`, else all."""
    all_parts = parts(warm_up)
    if only is not None:
        # the largest takes minutes to fill: only a full run is asked for it
        return [part for part in all_parts if part.only == only and not (quick and _is_huge(part))]
    return [part for part in all_parts if part.quick] if quick else all_parts


def _is_huge(part: Part) -> bool:
    return part.stored > 10**7


NAMES: Final = tuple(dict.fromkeys(part.only for part in parts(0)))
