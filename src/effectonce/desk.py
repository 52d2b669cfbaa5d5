"""Where one partition's records are decided and settled: touches the store, never the client.

    decide    identify -> look up -> plan; what runs goes to the handlers, as a `Task`
    conclude  settle -> commit; then what became of the records that stand behind

| answer to the commit | then                                                              |
| -------------------- | ----------------------------------------------------------------- |
| Applied, Already     | the position is the new one; the rest is held, or taken on        |
| Conflict             | the effects are gone with the transaction: decide the same again  |
| Stale                | someone else opened the partition: open again                     |
| Unknown              | hold everything; the identical commit is sent again               |
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

from effectonce.asking import Asked, Asking
from effectonce.core.idle import let_time_pass
from effectonce.core.outcome import encode_outcome
from effectonce.core.plan import Columns, Decision, Pending, Plan, plan
from effectonce.core.settle import Ended, Moment, marked_rows, resolved_rows, settle
from effectonce.core.stall import attempt, first_start, rest
from effectonce.errors import ConfigError, NotOpen, StoreCorrupt, StoreError, StoreUnavailable
from effectonce.event import Source, Work
from effectonce.hooks import PartitionStalled, Retrying, StoreOutage, emit, get_hooks
from effectonce.identity import Identified
from effectonce.model import (
    UNSET,
    Already,
    Applied,
    Commit,
    CommitResult,
    Conflict,
    Known,
    Outcome,
    Position,
    Query,
    Stale,
    Unknown,
)
from effectonce.once import Once
from effectonce.owned import Owned, Stage, Task, Unsent
from effectonce.ports import AsyncSendsAhead, AsyncStore, Clock, Reach, Records
from effectonce.stores.commits import are_facts
from effectonce.words import blocked, committed, gave_up, raised, untouched

log = logging.getLogger("effectonce")

STORE_WAIT_SECONDS: Final = 0.05
STORE_WAIT_MAX_SECONDS: Final = 5.0
"""Backoff of an outage; RocksDB itself recovers 5 s after space returns (seen)."""


class Desk:
    """Decides and settles; keeps nothing but what it works with."""

    def __init__(
        self,
        once: Once,
        store: AsyncStore,
        clock: Clock,
        partitions: Callable[[], Iterable[Owned]],
    ) -> None:
        self._once = once
        self._store = store
        self._clock = clock
        self._partitions = partitions
        self._shared = store.traits.reach is Reach.SHARED
        self.ahead = store if isinstance(store, AsyncSendsAhead) else None
        self._asking = Asking(self.ahead, clock)
        self._sent: Owned | None = None
        """Whose commit is on its way: at most one, and while no handler runs."""

    # -- before the handlers -------------------------------------------------------------------

    async def decide(self, owned: Owned, records: Records) -> Task | None:
        """What is to run of these records; None where they had to be held or dropped."""
        if len(records) > 1 and records.offsets()[0] < owned.alone_below:
            owned.held.appendleft(records.part(1))
            records = records.part(0, 1)
        asked = self._asking.take(records) or Asked(records, *self.columns_of(owned, records))
        identified, columns = asked.identified, asked.columns
        known = await self._asking.answer(asked) or await self.look_up(owned, columns)
        if not await self._goes_on(owned, records):
            return None
        if isinstance(known, StoreError):
            self.look_up_failed(owned, records, known)
            return None
        decided = plan(columns, known, owned.row.next, self._pending(), self._once.unidentified)
        if len(decided.runs) and not await self.count_start(
            owned, int(columns.offsets[decided.runs[0]])
        ):
            if owned.stage is Stage.RUNNING:  # else it begins anew, and they come once more
                owned.held.appendleft(records)
            return None
        transaction = self._store.transaction(owned.at) if self._once.in_store else None
        work = Work(
            records,
            identified,
            decided.runs,
            size=len(records),
            scope=owned.at.scope,
            effects=transaction,
            maybe_repeated_below=owned.maybe_repeated_below,
        )
        return Task(owned, records, identified, columns, decided, work, known, transaction)

    def ask(self, owned: Owned) -> bool:
        """Have the store look up what is decided next, or behind that; whether it does."""
        records = owned.held[0]
        if self.ahead is None or records.offsets()[0] < owned.alone_below:
            return False
        asked = self._asking.find(records)
        if asked is None:
            found = Asked(records, *self.columns_of(owned, records))
            asked = self._asking.ask(found, owned.row.run)
        return asked.receipt is not None

    def columns_of(self, owned: Owned, records: Records) -> tuple[Identified, Columns]:
        """What decisions need of them."""
        found = self._once.identity.identify(records)
        at, offsets = owned.at, records.offsets()
        return found, Columns(at, offsets, found.keys, found.fingerprints, found.problems)

    async def look_up(self, owned: Owned, columns: Columns) -> Known | StoreError:
        """What the store knows of them."""
        (known,) = await self._store.lookup([Query(owned.at, columns.keys, owned.row.run)])
        return known

    def look_up_failed(self, owned: Owned, records: Records, error: StoreError) -> None:
        """They are held, and come once more."""
        owned.held.appendleft(records)
        if isinstance(error, NotOpen):
            self._stale(owned)
        else:
            self.store_failed(owned, error)

    async def _goes_on(self, owned: Owned, records: Records) -> bool:
        """Whether `records` are next, once the commit on its way is answered; else they are held.

        Its answer is back before that to the look-up, which was sent behind it.
        """
        if self._sent is not owned:
            await self.collect()
            return True
        owned.held.appendleft(records)
        await self.collect()
        if owned.stage is not Stage.RUNNING or owned.unsent or owned.held[0] is not records:
            return False
        owned.held.popleft()
        return True

    def _pending(self) -> dict[bytes, Pending] | None:
        """Keys whose commit has no answer yet; they matter where other partitions share them."""
        if not self._shared:
            return None
        pending: dict[bytes, Pending] = {}
        for owned in self._partitions():
            if owned.unsent is None or (markers := owned.unsent.commit.markers) is None:
                continue
            raw = markers.keys.tobytes()
            for row, fingerprint in enumerate(markers.fingerprints.tolist()):
                pending[raw[16 * row : 16 * row + 16]] = Pending(owned.at, fingerprint)
        return pending

    async def count_start(self, owned: Owned, offset: int) -> bool:
        """Count what may kill the process durably before it runs; false where that failed."""
        if offset < owned.alone_below:
            commit = attempt(owned.at, owned.row, offset, owned.next_serial())
            log.error(
                "%s: its former owners began and did not advance; running offset %d alone, "
                "attempt %d (does this record kill the process?)",
                owned.at, offset, commit.position.attempts,
            )  # fmt: skip
            if not owned.counted:
                counted = first_start(owned.at, commit.position, owned.next_serial())
                commit = Commit(owned.at, commit.follows, counted.position)
        elif not owned.counted:
            row = owned.row
            commit = first_start(owned.at, row, owned.next_serial(), owned.counted_at)
            owned.counted_at = row.next
        else:
            return True
        owned.counted = await self.note(owned, commit)
        return owned.counted

    async def begin_row(self, owned: Owned, position: Position, follows: bytes) -> bool:
        """Write the row of a start."""
        return await self.note(owned, Commit(owned.at, follows, position))

    async def note(self, owned: Owned, commit: Commit) -> bool:
        """Commit a position without markers. Unanswered, the row says later what became of it."""
        (result,) = await self._store.commit([commit])
        if isinstance(result, Applied | Already):
            owned.position = commit.position
            self.store_works(owned)
            return True
        if isinstance(result, Stale):
            self._stale(owned)
        elif isinstance(result, Unknown):
            self._drop(owned)
            self.store_failed(owned, result.error)
        return False

    # -- after the handlers --------------------------------------------------------------------

    async def conclude(self, task: Task) -> None:
        """Make true what the handlers did, and see to the records behind."""
        owned, work = task.owned, task.work
        if task.transaction is not None and work.is_torn:
            owned.held.appendleft(task.records)  # rolled back whole, to be decided again
            return
        if work.failures and not self._once.in_store:
            # it may have had its effect before it raised: the next run of it is told so
            failed = int(task.columns.offsets[max(work.failures)])
            owned.maybe_repeated_below = max(owned.maybe_repeated_below, failed + 1)
        resolved = resolved_rows(task.plan, work.endings)
        writes = task.transaction.writes() if task.transaction else ()
        commit = self.settled(
            owned,
            task.columns,
            task.plan,
            Ended(work.endings, self._outcomes(work), writes),
            self._moment(task, resolved),
            task.known.as_of,
        )
        if commit is None:
            self._behind(task, resolved)
        else:
            await self._send(task, commit)

    def settled(
        self,
        owned: Owned,
        columns: Columns,
        made: Plan,
        ended: Ended,
        moment: Moment,
        as_of: int | None,
    ) -> Commit | None:
        """The commit that makes it true; None where nothing happened."""
        return settle(
            owned.row,
            columns,
            made,
            ended,
            moment=moment,
            half_ms=self._once.window.half_ms,
            serial=owned.next_serial(),
            on_existing=self._once.on_existing,
            as_of=as_of,
        )

    def _outcomes(self, work: Work) -> dict[int, Outcome]:
        if not work.outcomes:
            return {}
        limit = self._once.limits.outcome_bytes
        encoded = {row: encode_outcome(value, limit) for row, value in work.outcomes.items()}
        return {row: outcome for row, outcome in encoded.items() if outcome is not None}

    def _moment(self, task: Task, resolved: int) -> Moment:
        # the last record's time stands for the batch: log time only has to rise (PROTOCOL 6)
        last = max(resolved - 1, 0)
        ahead = UNSET
        if resolved < task.plan.size and len(marked := marked_rows(task.plan, task.work.endings)):
            ahead = int(marked[-1])
        records = task.records
        return self.moment((records, last), (records, ahead) if ahead >= resolved else None)

    def moment(self, passed: tuple[Source, int], ahead: tuple[Source, int] | None = None) -> Moment:
        """Now, by the last record passed, and by the last that is marked behind a gap."""
        records, last = passed
        return Moment(
            record_ms=records.timestamp_ms(last),
            wall_ms=self._clock.wall_ms(),
            leader_epoch=records.leader_epoch(last),
            ahead_ms=ahead[0].timestamp_ms(ahead[1]) if ahead is not None else UNSET,
        )

    async def resend(self, owned: Owned) -> None:
        """Send the commit without an answer once more, exactly as it was."""
        unsent = owned.unsent
        assert unsent is not None
        owned.unsent = None
        self._asking.forget()
        (result,) = await self._store.commit([unsent.commit])
        self.answered(owned, replace(unsent, sent_at=self._clock.monotonic()), result)

    @property
    def awaits_answer(self) -> bool:
        """Whether a commit is on its way."""
        return self._sent is not None

    async def collect(self) -> None:
        """Take the answer to the commit that is on its way, if there is one.

        On the keeper's thread too, beside a handler's that may be sending one just now.
        """
        owned = self._sent
        if owned is None:
            return
        self._sent = None
        if owned.unsent is None:  # broken off (Ctrl-C): the row says what became
            return
        unsent, owned.unsent = owned.unsent, None
        assert unsent.receipt is not None
        self.answered(owned, unsent, await unsent.receipt())

    async def _send(self, task: Task, commit: Commit) -> None:
        """Ahead, where nothing but the next records can come after it."""
        owned, resolved = task.owned, resolved_rows(task.plan, task.work.endings)
        passed, now = task.plan.decisions[:resolved], self._clock.monotonic()
        unsent = Unsent(commit, passed, task.handler_seconds, now, task)
        if self.ahead is not None and resolved == len(task.records) and not owned.leaving:
            owned.unsent = replace(unsent, task=None, receipt=self.ahead.send(commit))
            self._sent = owned
            return
        self._asking.forget()
        (result,) = await self._store.commit([commit])
        self.answered(owned, unsent, result)

    def answered(self, owned: Owned, unsent: Unsent, result: CommitResult) -> None:
        """What became of a commit."""
        commit, task = unsent.commit, unsent.task
        settlement, lanes = unsent.settlement, owned.lanes
        if settlement is not None and lanes is not None and not isinstance(result, Unknown):
            lanes.answered(settlement)  # refused, it is dropped; what ended since is told
        if isinstance(result, Applied | Already):
            owned.position = commit.position
            self.store_works(owned)
            if get_hooks():
                seconds = self._clock.monotonic() - unsent.sent_at
                emit(committed(owned, unsent, result, seconds))
            if task is not None:
                self._behind(task, len(unsent.passed))
        elif isinstance(result, Conflict):
            log.info("%s: %d events took effect elsewhere meanwhile", owned.at, len(result.rows))
            if task is not None:
                owned.held.appendleft(task.records)
            else:
                self._drop(owned)  # they come again from Kafka
        elif isinstance(result, Stale):
            if are_facts(commit):
                owned.refuse(commit.position)
            self._stale(owned)
        else:
            owned.unsent = replace(unsent, receipt=None)
            self.store_failed(owned, result.error)

    def _behind(self, task: Task, resolved: int) -> None:
        """What stands at the first record that the position did not pass decides how it goes on."""
        owned, records = task.owned, task.records
        if resolved == len(records):
            return
        owned.held.appendleft(records.part(resolved))
        offset = int(task.columns.offsets[resolved])
        if resolved < task.plan.size:
            error = task.work.failures.get(resolved)
            if isinstance(error, Exception) and not isinstance(error, ConfigError):
                # else it is let through (handlers.py), and no attempt at the event
                failed = self._failed_together if task.failed_together else self._failed
                failed(owned, offset, error)
            elif not resolved and not task.work.endings.any():
                # a loop of the user's that touches nothing must not spin
                owned.due = self._clock.monotonic() + self._once.retry.wait_seconds(1, 0.0)
                if owned.untouched == offset:
                    log.warning(untouched(owned.at, offset))
                owned.untouched = offset
        elif task.plan.blocked_by is Decision.WAIT:
            owned.due = self._clock.monotonic() + STORE_WAIT_SECONDS
        elif task.plan.blocked_by is not None:
            self.stop(owned, blocked(owned.at, task.identified, resolved, offset), offset)

    def _failed_together(self, owned: Owned, offset: int, error: Exception) -> None:
        """No attempt at any of them: they are handed over one by one, and the culprit is found."""
        if isinstance(error, StoreError):
            self.store_failed(owned, error)
            return
        if owned.attempt_offset != offset:
            owned.attempt_offset, owned.attempts = offset, 0
        owned.due = self._clock.monotonic() + self._once.retry.wait_seconds(1, random.random())
        log.warning(
            "%s: the handler failed a batch from offset %d on; its events are run one by one: %s",
            owned.at, offset, raised(error),
        )  # fmt: skip

    def _failed(self, owned: Owned, offset: int, error: Exception) -> None:
        if isinstance(error, StoreError):
            self.store_failed(owned, error)  # not the handler's: its `tx` could not read
            return
        again = owned.attempts + 1 if owned.attempt_offset == offset else 1
        owned.attempt_offset, owned.attempts = offset, again
        retry = self._once.retry
        if again >= retry.attempts:
            self.stop(owned, gave_up(owned.at, offset, again, error), offset)
            return
        wait = retry.wait_seconds(again, random.random())
        owned.due = self._clock.monotonic() + wait
        self.retrying(owned, offset, again, wait, error)

    def retrying(
        self, owned: Owned, offset: int, attempt: int, wait: float, error: BaseException
    ) -> None:
        """Say so."""
        log.warning(
            "%s offset %d: attempt %d of %d failed, next in %.1f s: %s",
            owned.at, offset, attempt, self._once.retry.attempts, wait, raised(error),
        )  # fmt: skip
        emit(Retrying(owned.at, offset, attempt, wait, error))

    # -- trouble -------------------------------------------------------------------------------

    def stop(self, owned: Owned, error: Exception, offset: int = UNSET) -> None:
        """Hold the partition here: paused, still assigned, red in `health()`."""
        owned.stage, owned.error = Stage.STOPPED, error
        owned.held.clear()
        owned.partial = None
        log.error("stopped: %s", error)
        emit(PartitionStalled(owned.at, offset, error))

    def store_failed(self, owned: Owned, error: Exception) -> None:
        """The store is down, full or locked: wait, Kafka is the buffer. Corrupt: stop."""
        if isinstance(error, StoreCorrupt) or not isinstance(error, StoreUnavailable):
            self.stop(owned, error)
            return
        now = self._clock.monotonic()
        if not owned.failures:
            owned.outage_since = now
            log.warning("%s: waiting for the store, nothing is lost: %s", owned.at, error)
            emit(StoreOutage(owned.at, over=False, error=error, lasted_seconds=0.0))
        owned.error = error
        wait = min(STORE_WAIT_SECONDS * 2.0 ** min(owned.failures, 16), STORE_WAIT_MAX_SECONDS)
        owned.failures += 1
        owned.due = now + wait

    def store_works(self, owned: Owned) -> None:
        """A commit was answered, or the partition begins; a look-up alone may be from memory."""
        owned.settled_at = self._clock.monotonic()
        if owned.failures:
            lasted = self._clock.monotonic() - owned.outage_since
            owned.failures, owned.error = 0, None
            log.warning("%s: the store answers again after %.1f s", owned.at, lasted)
            emit(StoreOutage(owned.at, over=True, error=None, lasted_seconds=lasted))

    def _stale(self, owned: Owned) -> None:
        log.warning(
            "%s: the store stands elsewhere: someone else opened the partition, or it went back; "
            "dropping the work, opening", owned.at
        )  # fmt: skip
        self._drop(owned)

    def _drop(self, owned: Owned) -> None:
        """Begin anew; where lanes run, as soon as nothing of it is in a handler."""
        if owned.is_unsettled:
            owned.dropped = True
        else:
            owned.reopen()

    async def verify(self, owned: Owned) -> None:
        """Send the row's own commit once more: Already where all is well, and nothing is written.

        A shared store that lost its last moments (a failover) would not be heard of otherwise,
        before the next record comes (simulated).
        """
        await self.note(owned, Commit(owned.at, owned.row.commit_id, owned.row))

    def time_passes(self, owned: Owned, newest_ms: int) -> Commit | None:
        """What `note` is to be given if the partition is at its log's end; often nothing."""
        return let_time_pass(
            owned.at,
            owned.row,
            newest_ms=newest_ms,
            wall_ms=self._clock.wall_ms(),
            half_ms=self._once.window.half_ms,
            serial=owned.next_serial(),
        )

    async def rest(self, owned: Owned) -> None:
        """Note that nothing is in flight: the partition is given up in good order.

        So does an owner that ran nothing, where nothing lay ahead of it when it began: else what a
        killed owner had left made all that came later look as if it may have run.
        """
        if owned.position is None or owned.stage is Stage.OPENING:
            return
        if owned.unsent is not None or owned.released:
            return
        if max(owned.attempt_offset + 1, owned.maybe_repeated_below) > owned.row.next:
            return  # what may have had its effect, here or at a former owner's, is still ahead
        commit = rest(owned.at, owned.row, owned.next_serial())
        if commit is not None:
            (result,) = await self._store.commit([commit])
            if isinstance(result, Applied | Already):
                owned.position = commit.position
