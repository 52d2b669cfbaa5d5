"""From an assignment to the first record: the order in which a partition begins.

    1 open      the store hands out an epoch; a LOCK held elsewhere is waited for
    2 ask       Kafka's committed offset and the log's ends, after the epoch: no earlier owner can
                move the position any more
    3 decide    core/start.py
    4 write     the row, where the start changed it
    5 tell      Kafka: (next, our metadata), synchronously, before the first record runs
    6 seek      and resume

Any step may fail and is tried again from the top; the partition stays assigned and paused.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from effectonce.core.rival import NOT_KNOWN, RIVAL_SECONDS, RIVALS, is_rival, opened_between
from effectonce.core.stall import Pace, pace
from effectonce.core.start import Begin, Refuse, Reopen, Situation, first_mark, start, witness_of
from effectonce.desk import Desk
from effectonce.errors import (
    BrokerError,
    Rival,
    StartRefused,
    StoreError,
    StoreLocked,
    UnknownTopic,
)
from effectonce.hooks import PartitionBegan, emit
from effectonce.model import NO_ID, Committed, Opened, Partition, Position
from effectonce.once import Once
from effectonce.owned import Owned, Stage
from effectonce.policy import StartAt
from effectonce.ports import AsyncClient, AsyncStore, Clock, CommitMode, KafkaOffset, Reach

log = logging.getLogger("effectonce")

BROKER_WAIT_SECONDS: Final = 0.2
LOCK_WAIT_SECONDS: Final = 0.05
"""A killed owner's LOCK is free within 4 ms (seen), so asking often makes takeovers short; the
question costs 2.5 ms."""
LOCK_QUIET_SECONDS: Final = 2.0
"""A hand-over between processes is normal and silent; a longer wait is worth a line."""


def topic_gone(subject: object, reason: str) -> UnknownTopic:
    """The error for a topic, or a partition of it, that vanished under a running consumer."""
    return UnknownTopic(
        f"{subject}: the topic is gone: {reason}. What took effect is in the store; a topic made "
        "anew under this name begins at its first record. Make it and restart, or unlist it"
    )


def told(at: Partition, row: Position) -> KafkaOffset:
    """What Kafka is told of a row that the store has."""
    return KafkaOffset(at.topic, at.number, row.next, witness_of(row))


class Beginner:
    """Begins partitions; holds nothing of its own."""

    def __init__(
        self,
        once: Once,
        store: AsyncStore,
        client: AsyncClient,
        clock: Clock,
        desk: Desk,
        store_id: bytes,
    ) -> None:
        self._once = once
        self._store = store
        self._client = client
        self._clock = clock
        self._desk = desk
        self._store_id = store_id

    async def begin(self, owned: Owned, topic_ids: Mapping[str, bytes]) -> None:
        """Take the steps above; afterwards `owned` is RUNNING, STOPPED, or has a new `due`."""
        topic_id = topic_ids.get(owned.at.topic)
        if topic_id is None:
            self._desk.stop(owned, topic_gone(owned.at, "it is not there any more"))
            return
        opened = await self._open(owned, topic_id)
        if opened is None:
            return
        try:
            situation = await self._ask(owned, opened, topic_id)
            decided = start(situation, self._once.start_policy)
            if isinstance(decided, Reopen):
                await self._open_above(owned, topic_id, decided.above)
                return
            if isinstance(decided, Refuse) and await self._recreated(owned, topic_id):
                owned.opened = None
                owned.due = self._clock.monotonic() + BROKER_WAIT_SECONDS
                return
            if isinstance(decided, Refuse):
                # the LOCK is freed, so that whoever mends it can
                await self._store.release(owned.at)
                owned.opened = None
                self._desk.stop(owned, StartRefused(decided.message, row=decided.row))
                return
            if await self._write(owned, decided, opened):
                # should a step below fail, the next try finds the row as it is now
                owned.opened = Opened(decided.position, opened.epoch)
                await self._run(owned, decided, situation)
        except StoreError as error:
            self._desk.store_failed(owned, error)
        except BrokerError as error:
            owned.error = error
            owned.due = self._clock.monotonic() + BROKER_WAIT_SECONDS
            log.info("%s: cannot begin yet: %s", owned.at, error)

    async def _recreated(self, owned: Owned, topic_id: bytes) -> bool:
        """Whether the topic was created anew since its id was asked for.

        The ends are then another log's: a refusal would hold the partition for nothing (simulated).
        """
        topic = owned.at.topic
        return (await self._client.topic_ids([topic])).get(topic) != topic_id

    async def _open(self, owned: Owned, topic_id: bytes) -> Opened | None:
        if owned.opened is not None:
            return owned.opened
        try:
            opened = await self._store.open(owned.at, topic_id)
            if self._has_rival(owned, opened.epoch):
                return None
            owned.opened = opened
        except StoreLocked as locked:
            now = self._clock.monotonic()
            if owned.error is None and now - owned.assigned_at > LOCK_QUIET_SECONDS:
                owned.error = locked
                log.warning("%s: waiting for its store: %s", owned.at, locked)
            owned.due = now + LOCK_WAIT_SECONDS
        except StoreError as error:
            owned.epoch = NOT_KNOWN  # it may have been opened all the same: by us
            self._desk.store_failed(owned, error)
        return owned.opened

    async def _open_above(self, owned: Owned, topic_id: bytes, above: int) -> None:
        """At once, and more and more slowly if that happens again.

        Kafka then hears of another owner, who pays for each of our openings with a stale commit,
        until we are told that we are none (simulated: seven deaf seconds).
        """
        wait = BROKER_WAIT_SECONDS * (2.0**owned.outbid - 1)
        owned.outbid = min(owned.outbid + 1, 5)
        owned.epoch = NOT_KNOWN  # unanswered, it may have been opened all the same: by us
        owned.opened = await self._store.open(owned.at, topic_id, above=above)
        owned.epoch = owned.opened.epoch
        owned.due = self._clock.monotonic() + wait

    def _has_rival(self, owned: Owned, epoch: int) -> bool:
        """Whether others opened it between our own opens, again and again: then it is stopped."""
        ours, owned.epoch = owned.epoch, epoch
        if not opened_between(ours, epoch):
            return False
        owned.rivals.append(self._clock.monotonic())
        if not is_rival(owned.rivals):
            return False
        self._desk.stop(
            owned,
            Rival(
                f"{owned.at}: opened by someone else {RIVALS} times within {RIVAL_SECONDS:g} s. "
                "Nothing was lost: each of their commits holds. Two groups of one name and scope "
                "on one store, or one store used by two clusters? Give one of them its own scope"
            ),
        )
        return True

    async def _ask(self, owned: Owned, opened: Opened, topic_id: bytes) -> Situation:
        committed = (await self._client.committed([owned.key]))[owned.key]
        if self._once.start_at is StartAt.LATEST and not (opened.row or committed):
            committed = await self._first_come(owned, topic_id)
        return Situation(
            at=owned.at,
            row=opened.row,
            epoch=opened.epoch,
            store_id=self._store_id,
            topic_id=topic_id,
            serial_base=owned.serial_base,
            refused=owned.refused,
            committed=committed,
            log=await self._client.log_ends(owned.key),
            shared=self._store.traits.reach is not Reach.EMBEDDED,
        )

    async def _first_come(self, owned: Owned, topic_id: bytes) -> Committed | None:
        """Mark the ends of all partitions, if the group is new; None where this one was added."""
        at = owned.at
        siblings = [(at.topic, number) for number in await self._client.partitions_of(at.topic)]
        known = any((await self._client.committed(siblings)).values())
        if known or await self._store.has_positions(at.scope, at.group, at.topic):
            return None
        mark = first_mark(self._store_id, topic_id)
        ends = {sibling: (await self._client.log_ends(sibling)).end for sibling in siblings}
        marks = [KafkaOffset(*sibling, end, mark) for sibling, end in ends.items()]
        await self._client.commit(marks, CommitMode.SYNC)
        return Committed(ends[owned.key], mark)

    async def _write(self, owned: Owned, decided: Begin, opened: Opened) -> bool:
        owned.position = decided.position
        if not decided.write:
            return True
        if opened.row is not None and opened.row.epoch == opened.epoch:
            # written in this period already, and the world has changed since (a topic created
            # anew: simulated): one commit id has one content, so another period begins
            owned.opened = None
            return False
        follows = opened.row.commit_id if opened.row else NO_ID
        if await self._desk.begin_row(owned, decided.position, follows):
            return True
        owned.opened = None  # whether it was written, only the row can tell
        return False

    async def _run(self, owned: Owned, decided: Begin, situation: Situation) -> None:
        at, position = owned.at, decided.position
        await self._client.commit([told(at, position)], CommitMode.SYNC)
        self._client.seek(owned.key, position.next)
        owned.told = position.next
        owned.log_end = owned.known_end = situation.log.end
        if pace(position) is Pace.ONE_BY_ONE:
            owned.alone_below = position.next + self._once.limits.batch
        # `outbid`: Kafka had seen our epoch, so what the store has forgotten may have happened
        in_doubt = decided.in_doubt or owned.ran or owned.outbid > 0
        if in_doubt and not self._once.in_store:
            owned.maybe_repeated_below = situation.log.end
        owned.stage, owned.error, owned.outbid = Stage.RUNNING, None, 0
        self._desk.store_works(owned)
        if decided.loud:
            log.warning("%s", decided.loud)
        waited = self._clock.monotonic() - owned.assigned_at
        log.info("%s: begins at %d (row %s, epoch %d)", at, position.next, decided.row,
                 position.epoch)  # fmt: skip
        emit(PartitionBegan(at, decided.row, position.next, position.epoch, waited))
