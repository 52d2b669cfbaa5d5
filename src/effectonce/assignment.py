"""Which partitions are ours: everything the group, the clock and the broker do to them.

    assigned   -> begin.py, as soon as the store and the broker let it
    revoked, lost, closed -> drain, one last commit, the store's room given up, Kafka told
    every second     Kafka is told where the store stands
    now and then     topic ids are compared, stopped partitions are named again

Called on the thread that holds the client: the caller's, or the keeper's while a handler is slow.
A revoke on the keeper's thread waits, under one deadline, until the handler's thread has settled
with the store; whatever comes later is judged by the store's fence.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from effectonce import waiting
from effectonce.begin import Beginner, told, topic_gone
from effectonce.desk import Desk
from effectonce.errors import BrokerError, HandlerTimeout, StoreError, UnknownTopic
from effectonce.hooks import PartitionAssigned, PartitionReleased, emit
from effectonce.keeper import stacks_of_others
from effectonce.lane_desk import LaneDesk
from effectonce.model import NO_ID, UNSET, Partition
from effectonce.once import Once
from effectonce.owned import Flight, Owned, Stage, Task
from effectonce.ports import (
    AsyncClient,
    AsyncStore,
    Clock,
    CommitMode,
    Reach,
    TopicPartition,
)
from effectonce.width import Width
from effectonce.words import hangs, held_up, no_partitions

log = logging.getLogger("effectonce")

TELL_SECONDS: Final = 1.0
"""Kafka follows the store at most this far behind: the blind spot of row 8 of the start table."""
TOPIC_CHECK_SECONDS: Final = 30.0
DRAINED_CHECK_SECONDS: Final = 1.0
"""A topic recreated under a running consumer raises nothing in librdkafka: it went on at offset 10
of the new log and lost ten records (seen). Its id is compared this often."""
VERIFY_SECONDS: Final = 10.0
"""How long an idle partition goes unheard of by a shared store. A call each; nothing is written."""
REMIND_SECONDS: Final = 60.0
QUIET_SECONDS: Final = 5.0
NOT_KNOWN: Final = UNSET - 1
"""In place of an offset that Kafka was told: it refused it."""
TEND_SECONDS: Final = 0.1
"""One poll of the keeper's: how long a handler that returns may have to wait for the client."""


class Assignment:
    """The partitions of one consumer. `Listener` and `Charge` of the ports."""

    def __init__(
        self,
        once: Once,
        store: AsyncStore,
        client: AsyncClient,
        clock: Clock,
        group: str,
        topics: Sequence[str],
        *,
        store_id: bytes,
        drain: Callable[[], Awaitable[None]],
        drain_seconds: float,
    ) -> None:
        """`drain` waits, under its deadline, until the handler's side has settled."""
        self._once = once
        self._store = store
        self._reach = store.traits.reach
        self._client = client
        self._clock = clock
        self._drain = drain
        self._drain_seconds = drain_seconds
        self._group = group
        self._topics = topics
        self._scope = once.scope or group
        self._owned: dict[TopicPartition, Owned] = {}
        self.desk = Desk(once, store, clock, self.partitions)
        self._beginner = Beginner(once, store, client, clock, self.desk, store_id)
        self.busy: Task | None = None
        """What the handlers have now."""
        self.lanes: LaneDesk | None = None
        """While handlers run side by side."""
        self.cut: HandlerTimeout | None = None
        self.fatal: Exception | None = None
        """Raised in a callback of the client's, for the loop to raise."""
        self.gone: dict[str, UnknownTopic] = {}  # topics of ours that vanished
        self.assigned = False
        """The group has said what is ours. Between a revoke of everything and the assignment behind
        it, which comes even if it is empty (seen), there is nothing to judge."""
        self._passed_on: dict[TopicPartition, int] = {}
        """Partitions of a job that are not ours, and their ends where they are known."""
        self._quiet_since = clock.monotonic()
        self._told = self._reminded = self._topics_checked = self.polled_at = self._asked = 0.0
        self._drained = self._flowed = False
        self._width = Width(client, clock.monotonic)

    def partitions(self) -> list[Owned]:
        """A snapshot; safe from any thread."""
        return list(self._owned.values())

    def halt(self) -> None:
        """What runs ends after the event in the handler. Safe from any thread."""
        for work in (self.lanes, self.busy):
            if work is not None:
                work.halted = True

    def has_ended(self) -> bool:
        """Whether nothing can come any more: all partitions stopped, or all topics are gone."""
        if len(self.gone) == len(self._topics):
            return True
        return bool(self._owned) and all(o.stage is Stage.STOPPED for o in self._owned.values())

    def stopped(self) -> list[Exception]:
        """Why partitions have stopped; if none has, which topics are gone."""
        owned = self.partitions()
        errors = [o.error for o in owned if o.stage is Stage.STOPPED and o.error is not None]
        return errors or list(self.gone.values())

    # -- records -------------------------------------------------------------------------------

    async def fetch(self, limit: int, timeout_seconds: float) -> None:
        """Poll, and hold what came with its partition."""
        self._pause_waiting()
        now = self._clock.monotonic()
        due = [owned.due - now for owned in self._owned.values() if waiting.has_due(owned)]
        if self.desk.awaits_answer:
            due.append(0.0)  # it comes while what is there already is taken
        self._drained = not await self._poll(limit, max(0.0, min([timeout_seconds, *due])))
        if self._drained:
            await self.desk.collect()

    async def fetch_behind(self, asked: Owned, limit: int) -> None:
        """Take what is there while the store looks up all that is held, if nothing else is due."""
        if waiting.is_alone(asked, self.partitions(), self._once.limits.held):
            await self._poll(limit, 0.0)

    async def _poll(self, limit: int, timeout_seconds: float) -> bool:
        """Hold what comes of running partitions, in batches."""
        in_batches = self.lanes is None and limit > 1
        poll = self._width.poll if in_batches else self._width.poll_as_it_comes
        came = await poll(limit, timeout_seconds, self._owned)
        self.polled_at = self._clock.monotonic()  # until now it was polled
        self._flowed = self._flowed or came
        return came

    async def ready(self, first: Owned | None = None) -> Owned | None:
        """A partition with records to decide; a commit without an answer goes first."""
        now = self._clock.monotonic()
        for owned in waiting.in_turn(self.partitions(), first):
            if owned.unanswered:
                await self._resend(owned, now)
            if waiting.may_go_on(owned, now) and owned.held:
                return owned
        return None

    async def resend_due(self) -> None:
        """Commits without an answer go first, whatever runs beside."""
        for owned in self.partitions():
            if owned.unanswered:
                await self._resend(owned, self._clock.monotonic())

    async def _resend(self, owned: Owned, now: float) -> None:
        if owned.due <= now and not waiting.was_refused(owned):
            await self.desk.resend(owned)

    def _pause_waiting(self) -> None:
        """Kafka is the buffer: what waits is paused, the rest flows."""
        held = self._once.limits.held
        changed = [o for o in self._owned.values() if waiting.is_to_pause(o, held) != o.paused]
        self._client.pause([o.key for o in changed if not o.paused])
        self._client.resume([o.key for o in changed if o.paused])
        for owned in changed:
            owned.paused = not owned.paused

    async def at_end(self, owned: Owned) -> bool:
        """Whether the partition is past the end that it had when it began."""
        if waiting.owes(owned):
            return False
        if owned.row.next >= owned.log_end:
            return True
        if not waiting.asks_end(owned, self._clock.monotonic(), drained=self._drained):
            return False
        # control records at the end are never delivered, but the client passes them
        return await self._client.position(owned.key) >= owned.log_end

    async def wait_for_all(self) -> None:
        """A job begins: it ends when every partition is past the end that it has now.

        Whoever holds it. A member that was killed holds its partitions until its session is over,
        and a job that looked at its own alone ended in good order with theirs undone (seen).
        """
        for topic in self._topics:
            for number in await self._client.partitions_of(topic):
                if (topic, number) in self._owned or (topic, number) in self._passed_on:
                    continue
                ends = await self._client.log_ends((topic, number))
                if ends.end > ends.start:
                    self._passed_on[topic, number] = ends.end

    async def others_are_at_end(self) -> bool:
        """Whether the partitions that others hold have been brought to their ends by them.

        Kafka is asked, once a second: a partition on its way may be nobody's, and whoever waits for
        it gets it back if the others leave.
        """
        now = self._clock.monotonic()
        if not self._passed_on or now - self._asked < TELL_SECONDS:
            return not self._passed_on
        self._asked = now
        try:
            committed = await self._client.committed(list(self._passed_on))
            for key, end in list(self._passed_on.items()):
                offset = found.offset if (found := committed[key]) else UNSET
                if offset >= ((await self._client.log_ends(key)).end if end == UNSET else end):
                    del self._passed_on[key]
        except BrokerError as error:
            log.info("cannot see how far the others are: %s", error)
        return not self._passed_on

    # -- what is due ---------------------------------------------------------------------------

    async def see_to_what_is_due(self) -> None:
        """Once a turn: begin, tell Kafka, compare topic ids, remind."""
        now = self._clock.monotonic()
        await self._begin_due(now)
        await self._tell_kafka(now)
        await self._check_topics_now_and_then(now)
        await self._verify_idle(now)
        self._remind(now)
        if not self.assigned and now - self._quiet_since >= QUIET_SECONDS:
            self._quiet_since = now + REMIND_SECONDS
            log.info(no_partitions(self._topics))

    async def _begin_due(self, now: float) -> None:
        for owned in self._owned.values():
            if owned.anew or owned.dropped:
                await self._drop(owned)
        opening = [o for o in self._owned.values() if self._may_open(o, now)]
        if not opening:
            return
        try:
            topic_ids = await self._client.topic_ids(sorted({o.at.topic for o in opening}))
        except BrokerError as error:
            log.info("cannot begin yet: %s", error)
            for owned in opening:
                owned.due = now + TELL_SECONDS
            return
        self._compare(topic_ids)
        for owned in opening:
            await self._beginner.begin(owned, topic_ids)

    async def _drop(self, owned: Owned) -> None:
        """Begin anew, once nothing of it is in a handler or without an answer."""
        await self.desk.collect()  # else one is always on its way while records flow
        waits = owned.unsent is not None or (self.lanes is not None and owned.is_unsettled)
        if owned.stage is not Stage.RUNNING or waits:
            return
        if owned.anew:
            # what failed there may be another record by now
            owned.attempt_offset = owned.alone_below = owned.singly_below = UNSET
        due = owned.due if owned.dropped else 0.0  # the store may be down: not at once, then
        owned.reopen()
        owned.due = due

    def _may_open(self, owned: Owned, now: float) -> bool:
        if owned.stage is not Stage.OPENING or owned.due > now:
            return False
        # a late handler has a record of it still, and its lane is to be in order
        return self.lanes is None or not self.lanes.is_flying(owned.at)

    def begin_again(self) -> None:
        """What is held in memory is in doubt: the store says where each partition goes on."""
        for owned in self._owned.values():
            if owned.stage is Stage.RUNNING:
                owned.reopen()

    async def _tell_kafka(self, now: float) -> None:
        if now - self._told < TELL_SECONDS:
            return
        self._told = now
        running = [o for o in self._owned.values() if o.stage is not Stage.OPENING and o.position]
        for owned in running:
            owned.known_end = self._client.known_end(owned.key)
        await self._tell(running, CommitMode.ASYNC)

    async def _tell(self, partitions: Sequence[Owned], mode: CommitMode) -> None:
        behind = [o for o in partitions if o.told != UNSET and o.told != o.row.next]
        try:
            await self._client.commit([told(o.at, o.row) for o in behind], mode)
        except BrokerError as error:
            # the store has it; the next owner finds Kafka lagging (row 9)
            log.info("Kafka was not told: %s", error)
            return
        for owned in behind:
            owned.told = owned.row.next

    async def _check_topics_now_and_then(self, now: float) -> None:
        since = now - self._topics_checked
        # a partition has drained: its log may be another one by now
        quiet = self._drained and self._flowed and since >= DRAINED_CHECK_SECONDS
        if since >= TOPIC_CHECK_SECONDS or quiet:
            self._topics_checked, self._flowed = now, False
            await self.check_topics()

    async def check_topics(self) -> None:
        """Notice topics that are gone, or are others by now."""
        try:
            ids = await self._client.topic_ids(self._topics)
        except BrokerError as error:
            log.info("topic ids are not known: %s", error)
            return
        for topic in self._topics:
            if topic in ids:
                self.gone.pop(topic, None)
            else:
                self.on_topic_gone(topic, "it was deleted")
        self._compare(ids)

    def _compare(self, ids: Mapping[str, bytes]) -> None:
        """Begin anew where a log is another one by now."""
        for owned in self.partitions():
            topic_id = ids.get(owned.at.topic)
            if owned.stage is not Stage.RUNNING or owned.anew or topic_id is None:
                continue
            if topic_id != owned.row.topic_id != NO_ID:
                log.warning("%s: the topic was created anew; beginning again", owned.at)
                owned.anew = True

    async def _verify_idle(self, now: float) -> None:
        if self._reach is Reach.EMBEDDED:
            return
        idle = [o for o in self._owned.values() if waiting.is_idle(o, now, VERIFY_SECONDS)]
        for owned in idle:
            await self.desk.verify(owned)
        if idle and self._reach is Reach.SHARED:
            await self._let_time_pass([o for o in idle if waiting.may_go_on(o, now)])

    async def _let_time_pass(self, idle: Sequence[Owned]) -> None:
        """Their generations must not hold up everyone else's (core/idle.py)."""
        try:
            newest_ms = await self._store.newest_ms(self._scope)
            for owned in idle:
                commit = self.desk.time_passes(owned, newest_ms)
                if commit is not None and await self._holds_nothing_more(owned):
                    await self.desk.note(owned, commit)
        except (StoreError, BrokerError) as error:
            log.info("time does not pass in idle partitions: %s", error)

    async def _holds_nothing_more(self, owned: Owned) -> bool:
        """Whether the partition is at the end that its log has now.

        Of another log, created anew under the topic's name, all records are still to come. It may
        end just there: the id, read after the end, says whose end that was (simulated, 12014885).
        """
        ends = await self._client.log_ends(owned.key)
        if max(owned.row.next, await self._client.position(owned.key)) != ends.end:
            return False
        ids = await self._client.topic_ids([owned.at.topic])
        self._compare(ids)
        return owned.at.topic in ids and not owned.anew

    def _remind(self, now: float) -> None:
        if now - self._reminded < REMIND_SECONDS:
            return
        self._reminded = now
        for error in (o.error for o in self._owned.values() if o.stage is Stage.STOPPED):
            log.error("still stopped: %s", error)
        for gone in self.gone.values():
            log.error("still gone: %s", gone)
        if self.assigned and self._passed_on and self._asked:
            held = ", ".join(f"{topic}[{number}]" for topic, number in sorted(self._passed_on))
            log.warning("waiting for others of the group to finish %s", held)

    # -- Charge: while a handler has the thread --------------------------------------------------

    async def tend(self) -> None:
        """Pause everything, poll once: heartbeats, rebalances."""
        if (task := self.busy) is not None and task.halted and not task.said:
            task.said = True
            log.warning(held_up(task, self._once.limits.handler_timeout_seconds))
        flowing = [o for o in self._owned.values() if not o.paused]
        self._client.pause([o.key for o in flowing])
        for owned in flowing:
            owned.paused = True
        await self._poll(1, TEND_SECONDS if self.busy else 0.0)

    async def cut_off(self) -> None:
        """The handler is past its deadline and cannot be interrupted: make it harmless."""
        if (task := self.busy) is not None:
            await self.leave_at_once(task)

    async def leave_at_once(self, late: Task | Flight) -> None:
        """This handler is past its deadline: leave the group without it."""
        owned = late.owned
        self.cut = hangs(late, self._once.limits.handler_timeout_seconds)
        late.kill()
        log.error("%s\n%s", self.cut, stacks_of_others(late.thread))
        if self.lanes is not None:
            await self.give_up(list(self._owned), "cut off", CommitMode.LAST)
        await self._store.release(owned.at)
        owned.released = True
        await self._client.close()

    # -- Listener: inside fetch ----------------------------------------------------------------

    def on_assigned(self, partitions: Sequence[TopicPartition]) -> None:
        now = self._clock.monotonic()
        self.assigned = True
        for topic, number in partitions:
            at = Partition(self._scope, self._group, topic, number)
            self._passed_on.pop((topic, number), None)
            self._owned[topic, number] = Owned(at, assigned_at=now)
            emit(PartitionAssigned(at))

    async def on_revoked(self, partitions: Sequence[TopicPartition]) -> None:
        await self._guarded(partitions, "revoked", CommitMode.LAST)

    async def on_lost(self, partitions: Sequence[TopicPartition]) -> None:
        await self._guarded(partitions, "lost", None)

    def on_position_gone(self, partition: TopicPartition, reason: str) -> None:
        if (owned := self._owned.get(partition)) and owned.stage is Stage.RUNNING:
            log.warning("%s: the log no longer has the position: %s", owned.at, reason)
            owned.anew = True

    def on_topic_gone(self, topic: str, reason: str) -> None:
        if topic not in self.gone:
            self.gone[topic] = topic_gone(topic, reason)
            log.error("%s", self.gone[topic])
        self._passed_on = {key: end for key, end in self._passed_on.items() if key[0] != topic}
        for owned in self.partitions():
            if owned.at.topic == topic and owned.stage is not Stage.STOPPED:
                self.desk.stop(owned, topic_gone(owned.at, reason))

    def on_commit_refused(self, partitions: Sequence[TopicPartition]) -> None:
        for partition in partitions:
            if (owned := self._owned.get(partition)) and owned.told != UNSET:
                owned.told = NOT_KNOWN

    async def _guarded(
        self, partitions: Sequence[TopicPartition], reason: str, mode: CommitMode | None
    ) -> None:
        """librdkafka's callbacks must not raise; the loop will."""
        try:
            await self.give_up(partitions, reason, mode)
        except Exception as error:  # noqa: BLE001 - raised by the loop instead
            self.fatal = error

    async def give_up_all(self) -> None:
        """The consumer closes."""
        await self.give_up(list(self._owned), "closed", CommitMode.LAST)

    async def give_up(
        self, partitions: Sequence[TopicPartition], reason: str, mode: CommitMode | None
    ) -> None:
        going = [self._owned[p] for p in partitions if p in self._owned]
        self._topics_checked = -TOPIC_CHECK_SECONDS  # a deleted topic is revoked like any other
        for owned in going:
            owned.leaving = True
        if self.lanes is not None:
            await self.lanes.drain(going, 0.0 if self.cut else self._drain_seconds)
        busy = self.busy  # read once: the handler's thread may give it back meanwhile
        if busy is not None and busy.owned in going and self.cut is None:
            busy.halted = True
            await self._drain()
        busy = self.busy
        for owned in going:
            del self._owned[owned.key]
            if owned.position is None or owned.row.next < owned.log_end:
                self._passed_on[owned.key] = owned.log_end
            if busy is None or owned is not busy.owned:
                await self.release(owned, reason)
        self.assigned, self._quiet_since = bool(self._owned), self._clock.monotonic()
        if mode is not None:
            await self._tell([o for o in going if o.position is not None], mode)

    async def release(self, owned: Owned, reason: str) -> None:
        if owned.released:
            return
        await self.desk.collect()
        if owned.unsent is not None and not waiting.was_refused(owned):
            await self.desk.resend(owned)
            if self.lanes is not None:  # what ended while it had no answer
                await self.lanes.settle([owned])
        await self.desk.rest(owned)
        owned.released = True
        busy = self.busy
        # else it was given again, and a handler has it still
        if busy is None or busy.owned is owned or busy.owned.at != owned.at:
            await self._store.release(owned.at)
        emit(PartitionReleased(owned.at, reason))
