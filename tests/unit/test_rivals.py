"""Who is a rival, and what is a death: neither is an answer that was lost on its way to us."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

import effectonce as eo
from effectonce.errors import StoreUnavailable
from effectonce.model import Commit, CommitResult, Opened, Partition, Unknown
from effectonce.stores.memory import MemoryStore
from tests.unit.lone import AT_ONCE, IDS, Log, SlowPolls, consumer_of, count, effects_in

pytestmark = pytest.mark.timeout(30)


class StoreThatLosesAnswers(MemoryStore):
    """So many first starts are counted, and not answered; until then, every other opening too."""

    def __init__(self, notes: int, *, openings: bool) -> None:
        super().__init__()
        self._notes, self._openings = notes, openings
        self._opened = 0

    def open(self, at: Partition, topic_id: bytes, *, above: int = 0) -> Opened:
        opened = super().open(at, topic_id, above=above)
        self._opened += 1
        if self._openings and self._notes and self._opened % 2 == 0:
            raise StoreUnavailable("the answer was lost")
        return opened

    def commit(self, commits: Sequence[Commit]) -> list[CommitResult]:
        results = super().commit(commits)
        if self._notes and commits[0].markers is None and commits[0].position.in_flight:
            self._notes -= 1
            return [Unknown(StoreUnavailable("the answer was lost"))]
        return results


def test_openings_that_were_done_and_not_answered_are_no_rivals() -> None:
    """Each is an epoch that we were never told of; ten of them would stop the partition."""
    store = StoreThatLosesAnswers(12, openings=True)
    with consumer_of(SlowPolls(Log(), seconds=0.1), store) as consumer:
        consumer.run(count, until=eo.END)
    assert effects_in(store) == IDS


def test_first_starts_that_were_counted_and_not_answered_are_no_deaths(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A record would be accused of killing the process, and five hundred run one at a time."""
    store = StoreThatLosesAnswers(3, openings=False)
    with consumer_of(SlowPolls(Log(), seconds=0.1), store) as consumer:
        consumer.run(count, until=eo.END)
    assert effects_in(store) == IDS
    assert "kill the process" not in caplog.text


def test_failures_in_the_former_topic_are_not_held_against_the_new_ones_record() -> None:
    """It has three attempts of its own, whatever stood there before."""
    log, store, failed = Log(), MemoryStore(), list[str]()
    client = SlowPolls(log, seconds=60.0)

    def handler(event: eo.Event, tx: eo.KeyValueTx) -> None:
        if event.id in (IDS[0], "new") and failed.count(event.id) < 2:
            failed.append(event.id)
            if len(failed) == 2:
                log.ids, client.topic_id = {0: "new"}, b"U" * 16
            raise ValueError
        count(event, tx)

    with consumer_of(client, store, retry=replace(AT_ONCE, attempts=3)) as consumer:
        consumer.run(handler, until=eo.END)
    assert failed == [IDS[0], IDS[0], "new", "new"]
