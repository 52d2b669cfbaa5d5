"""A handler that fails, in whatever way, loses nothing and repeats nothing."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, cast

import pytest

import effectonce as eo
from effectonce.core.outcome import decode_outcome
from effectonce.hooks import BatchCommitted, Retrying
from effectonce.identity.keys import keys_of
from effectonce.model import Marker, OutcomeKind
from effectonce.stores.memory import MemoryStore
from effectonce.stores.rocksdb import RocksDBStore
from tests.bad_input.kit import Flow, count, id_header, once_each, stops
from tests.unit import lone


def charge_badly(event: eo.Event, tx: eo.KeyValueTx) -> None:
    """Takes effect, and then raises with the event's ID in its text."""
    count(event, tx)
    raise KeyError(f"no account for {event.id}")


# -- it raises -------------------------------------------------------------------------------------


def test_a_handler_that_raises_holds_its_partition_and_no_other(flow: Flow) -> None:
    before, bad, behind = flow.send(2), flow.send(1), flow.send(2)
    beside = flow.send(3, partition=1)

    def handler(event: eo.Event, tx: eo.KeyValueTx) -> None:
        (charge_badly if event.id in bad else count)(event, tx)

    with stops(
        eo.HandlerFailed,
        f"{flow.topic}[0] offset 2: the handler failed 2 times, at last with KeyError",
        "Everything before it is committed, nothing behind it was run; the record stays in Kafka",
        "Mend the handler and restart",
    ):
        flow.job(handler)
    assert flow.effects() == once_each(before + beside)
    flow.job()
    assert flow.effects() == once_each(before + bad + behind + beside)


def test_what_a_handler_raised_is_told_by_type_and_place_and_kept_as_the_cause(flow: Flow) -> None:
    (event_id,) = flow.send()
    with pytest.raises(eo.HandlerFailed) as stopped:
        flow.job(charge_badly)
    assert "KeyError in test_handlers.py, line " in str(stopped.value)
    assert not flow.shown(str(stopped.value))
    assert isinstance(stopped.value.__cause__, KeyError)
    assert event_id in str(stopped.value.__cause__)  # for the user, not for a log
    (retrying,) = flow.watch.of(Retrying)
    assert isinstance(retrying.error, KeyError)
    assert not flow.effects()


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text either")

    __repr__ = __str__


@pytest.mark.parametrize(
    "error",
    [Unspeakable(), StopIteration(), TimeoutError(), ExceptionGroup("two", [OSError()])],
)
def test_an_exception_of_any_kind_is_one_failure(flow: Flow, error: Exception) -> None:
    ids = flow.send(2)

    def handler(event: eo.Event, tx: eo.KeyValueTx) -> None:
        count(event, tx)
        if event.id == ids[0]:
            raise error

    name = type(error).__name__
    with stops(eo.HandlerFailed, f"failed 2 times, at last with {name} in test_handlers.py"):
        flow.job(handler)
    assert not flow.effects()
    flow.job()
    assert flow.effects() == once_each(ids)


def test_a_failure_said_of_an_event_is_told_without_its_text(flow: Flow) -> None:
    ids = flow.send(2)

    def handler(event: eo.Event, tx: eo.KeyValueTx) -> None:
        event.failed(ValueError(event.id))

    with stops(eo.HandlerFailed, "offset 0: the handler failed 2 times, at last with ValueError."):
        flow.job(handler)
    flow.job()
    assert flow.effects() == once_each(ids)


def test_a_batch_handler_that_raises_at_one_event_takes_effect_for_the_others(flow: Flow) -> None:
    before, bad, behind = flow.send(2), flow.send(1), flow.send(2)

    def handler(batch: eo.Batch, tx: eo.KeyValueTx) -> None:
        for event in batch:
            (charge_badly if event.id in bad else count)(event, tx)

    with stops(eo.HandlerFailed, f"{flow.topic}[0] offset 2"), flow.consumer() as consumer:
        consumer.run_batches(handler, until=eo.END)
    assert flow.effects() == once_each(before)
    flow.job()
    assert flow.effects() == once_each(before + bad + behind)


# -- it ends the process, or tries to --------------------------------------------------------------


EXITS: dict[str, Callable[[], object]] = {
    "sys.exit": lambda: sys.exit(3),
    "Ctrl-C": lambda: os.kill(os.getpid(), signal.SIGINT),
}


@pytest.mark.parametrize("how", EXITS)
def test_an_exit_in_a_handler_is_let_through_and_leaves_nothing_half_done(
    flow: Flow, how: str
) -> None:
    ids, beside = flow.send(3), flow.send(2, partition=1)

    def handler(event: eo.Event, tx: eo.KeyValueTx) -> None:
        count(event, tx)
        if event.id == ids[1]:
            EXITS[how]()

    with pytest.raises((SystemExit, KeyboardInterrupt)):
        flow.job(handler)
    done = flow.effects()
    assert done[ids[0]] == 1
    assert not done.keys() & set(ids[1:])
    flow.job()
    assert flow.effects() == once_each(ids + beside)


def test_an_exit_in_a_batch_handler_rolls_its_batch_back(flow: Flow) -> None:
    ids = flow.send(3)

    def handler(batch: eo.Batch, tx: eo.KeyValueTx) -> None:
        for event in batch:
            count(event, tx)
        sys.exit(3)

    with pytest.raises(SystemExit), flow.consumer() as consumer:
        consumer.run_batches(handler, until=eo.END)
    assert not flow.effects()
    flow.job()
    assert flow.effects() == once_each(ids)


@pytest.mark.parametrize("again", ["run", "run_batches", "__iter__", "__next__"])
def test_a_handler_cannot_poll_the_client_that_it_was_called_from(flow: Flow, again: str) -> None:
    ids = flow.send(2)
    with flow.consumer() as consumer:

        def handler(event: eo.Event, tx: eo.KeyValueTx) -> None:
            count(event, tx)
            arguments = [count] if again.startswith("run") else []
            with pytest.raises(RuntimeError, match="in a handler"):
                getattr(consumer, again)(*arguments)

        consumer.run(handler, until=eo.END)
    assert flow.effects() == once_each(ids)


def test_a_loop_that_was_left_is_settled_by_whatever_comes_next(flow: Flow) -> None:
    ids = flow.send(3)
    with flow.consumer(limits=eo.Limits(batch=1)) as consumer:
        for batch in consumer:
            for event in batch:
                with event as tx:
                    count(event, cast(eo.KeyValueTx, tx))
            break
        consumer.run(count, until=eo.END)
    assert flow.effects() == once_each(ids)


def test_a_consumer_that_is_closed_says_so(flow: Flow) -> None:
    with flow.consumer() as consumer:
        pass
    with pytest.raises(RuntimeError, match="closed; make a new one"):
        consumer.run(count)


# -- it hangs --------------------------------------------------------------------------------------


def test_a_handler_that_hangs_is_cut_off_and_its_events_move_on(
    flow: Flow, caplog: pytest.LogCaptureFixture
) -> None:
    ids = flow.send(3)
    thaw, late = threading.Event(), list[str]()

    def hangs(event: eo.Event, tx: eo.KeyValueTx) -> None:
        if event.id != ids[1]:
            count(event, tx)
            return
        flow.watch.note("hangs")
        assert thaw.wait(30)
        try:
            count(event, tx)
        except eo.TransactionClosed as dead:
            late.append(str(dead))
            raise

    limits = eo.Limits(handler_timeout_seconds=1.5, drain_seconds=0.1)
    frozen = flow.member(hangs, limits=limits)
    frozen.start()
    flow.watch.until(lambda: "hangs" in flow.watch.of(str))
    with flow.member():  # the heir, in another process as well as here
        flow.watch.until(lambda: sum(each.fresh for each in flow.watch.of(BatchCommitted)) == 3)
    assert flow.effects() == once_each(ids)
    thaw.set()
    frozen.join()
    cut = frozen.error
    assert isinstance(cut, eo.HandlerTimeout)
    assert f"{flow.topic}[0] offset 1: a handler ran longer than 1.5 s" in str(cut)
    assert "its transaction is dead" in str(cut)
    assert late == ["the handler was cut off: this transaction takes no more calls"]
    assert "thaw.wait(30)" in caplog.text  # where it hangs
    assert flow.effects() == once_each(ids)


def test_a_stop_that_waits_for_a_handler_says_which_or_it_looks_like_a_hang(flow: Flow) -> None:
    ids = flow.send(3)
    thaw = threading.Event()

    def hangs(event: eo.Event, tx: eo.KeyValueTx) -> None:
        if event.id == ids[1]:
            member.consumer.stop()
            assert thaw.wait(30)

    with flow.member(hangs) as member:
        flow.watch.until(lambda: any("has not returned" in said for said in flow.watch.of(str)))
        thaw.set()
    (said,) = (each for each in flow.watch.of(str) if "has not returned" in each)
    assert said.startswith(f"{flow.topic}[0] offset 1: stopping")


# -- it returns what cannot be kept ----------------------------------------------------------------


def marker_of(flow: Flow, event_id: str) -> Marker:
    store = RocksDBStore(flow.state)
    try:
        store.open(flow.at(), bytes(16))
        found = store.find(flow.at(), keys_of([event_id.encode()], None).tobytes())
    finally:
        store.close()
    assert found is not None
    return found


class Treacherous(dict[str, int]):
    """A mapping that msgpack takes for one, until it asks for the items."""

    def items(self) -> Any:
        raise KeyError("not today")


def endless() -> list[object]:
    inside: list[object] = []
    inside.append(inside)
    return inside


UNSTORABLE: tuple[tuple[object, str], ...] = (
    (object(), "not serialisable: object"),
    ({1, 2}, "not serialisable: set"),
    (2**64, "not serialisable: int"),
    ("\ud800", "not serialisable: str"),
    (Treacherous(a=1), "not serialisable: Treacherous"),
    (endless(), "not serialisable: list"),
    (b"x" * 65_536, "too large"),
)


def test_an_outcome_that_cannot_be_kept_fails_no_record_and_is_kept_as_that_fact(
    flow: Flow,
) -> None:
    ids = flow.send(len(UNSTORABLE))

    def handler(event: eo.Event, tx: eo.KeyValueTx) -> object:
        count(event, tx)
        return UNSTORABLE[event.offset][0]

    flow.job(handler)
    for each in ids:
        flow.produce(b"payload of " + each.encode(), headers=id_header(each))
    flow.job()
    assert flow.effects() == once_each(ids)
    for event_id, (_, fact) in zip(ids, UNSTORABLE, strict=True):
        kept = marker_of(flow, event_id).outcome
        assert kept is not None
        assert kept.kind is OutcomeKind.UNSTORABLE
        reason, size, _ = cast(list[Any], decode_outcome(kept))
        assert reason == fact
        assert (size > 0) == (fact == "too large")


# -- it runs nothing -------------------------------------------------------------------------------


def test_a_coroutine_that_a_plain_function_made_is_not_taken_for_an_effect(flow: Flow) -> None:
    ids = flow.send(2)

    async def charge(event: eo.Event, tx: eo.KeyValueTx) -> None:
        count(event, tx)

    def begin(event: eo.Event, tx: eo.KeyValueTx) -> object:
        return charge(event, tx)

    for run in (eo.OnceConsumer.run, eo.OnceConsumer.run_batches):
        with flow.consumer() as consumer, pytest.raises(eo.ConfigError, match="runs nothing"):
            run(consumer, begin, until=eo.END)
    assert not flow.effects()
    flow.job()
    assert flow.effects() == once_each(ids)


# -- tx --------------------------------------------------------------------------------------------


def test_a_tx_outside_of_its_event_writes_nothing_whatever_thread_has_it(flow: Flow) -> None:
    ids = flow.send(3)
    kept: list[tuple[eo.Event, eo.KeyValueTx]] = []
    refused: list[str] = []

    def use(event: eo.Event, tx: eo.KeyValueTx) -> None:
        for call in (
            lambda: tx.put(b"late", b"1"),
            lambda: tx.get(b"late"),
            lambda: tx.delete(b"late"),
            lambda: list(tx.scan()),
        ):
            try:
                call()
            except eo.TransactionClosed as closed:
                refused.append(str(closed))

    def handler(event: eo.Event, tx: eo.KeyValueTx) -> None:
        for late in kept:
            thread = threading.Thread(target=use, args=late)
            thread.start()
            thread.join()
        use(*kept[0]) if kept else None
        kept.append((event, tx))
        count(event, tx)

    flow.job(handler)
    use(*kept[0])
    assert refused == ["this transaction ended with its event; use it only inside the handler"] * 24
    assert flow.effects() == once_each(ids)


def test_a_thread_of_the_handlers_writes_with_its_event_or_not_at_all(flow: Flow) -> None:
    ids = flow.send(2)
    failing = [True]

    def handler(event: eo.Event, tx: eo.KeyValueTx) -> None:
        thread = threading.Thread(target=count, args=(event, tx))
        thread.start()
        thread.join()
        if failing[0]:
            raise OSError

    with pytest.raises(eo.HandlerFailed):
        flow.job(handler)
    assert not flow.effects()
    failing[0] = False
    flow.job(handler)
    assert flow.effects() == once_each(ids)


MISUSES: tuple[Callable[[Any], object], ...] = (
    lambda tx: tx.put("text", b"v"),
    lambda tx: tx.put(b"k", "text"),
    lambda tx: tx.put(b"k", None),
    lambda tx: tx.put(bytearray(b"k"), b"v"),
    lambda tx: tx.get(5),
    lambda tx: tx.delete(None),
    lambda tx: tx.scan("text"),
    lambda tx: tx.put(b"k" * 8193, b"v"),
    lambda tx: tx.put(b"k", bytes(16 * 1024 * 1024 + 1)),
)


def test_a_tx_refuses_what_it_could_not_store_and_the_event_goes_on(flow: Flow) -> None:
    ids = flow.send(2)
    refused: list[Exception] = []

    def handler(event: eo.Event, tx: eo.KeyValueTx) -> None:
        for misuse in MISUSES:
            try:
                misuse(tx)
            except (TypeError, ValueError) as error:
                refused.append(error)
        count(event, tx)

    flow.job(handler)
    assert len(refused) == 2 * len(MISUSES)
    assert flow.effects() == once_each(ids)


def test_a_loop_that_leaves_an_event_by_an_exception_runs_it_again(flow: Flow) -> None:
    ids = flow.send(3)

    def loop(consumer: eo.OnceConsumer) -> None:
        for batch in consumer:
            for event in batch:
                with event as tx:
                    count(event, cast(eo.KeyValueTx, tx))
                    if event.id == ids[1]:
                        raise OSError("broken")

    with flow.consumer() as consumer, pytest.raises(OSError, match="broken"):
        loop(consumer)
    assert flow.effects() == once_each(ids[:1])
    flow.job()
    assert flow.effects() == once_each(ids)


@pytest.mark.parametrize("outcome", [False, {"batchItemFailures": []}, ["e1"], ValueError("x")])
@pytest.mark.parametrize("effects", [eo.InStore(), eo.Outside("repeat")])
def test_what_a_batch_handler_returns_is_refused_or_a_report_of_failures_would_mean_all_done(
    outcome: object, effects: eo.InStore | eo.Outside
) -> None:
    store = MemoryStore()
    with lone.consumer_of(
        lone.LogClient(lone.Log({0: "e1", 1: "e2"})), store, effects=effects
    ) as consumer:
        with pytest.raises(eo.errors.ConfigError, match=r"returned \w+; a batch handler returns"):
            consumer.run_batches(lambda *_: outcome, until=eo.END)
        seen: list[str] = []
        consumer.run_batches(
            lambda batch, *_: seen.extend(event.id for event in batch), until=eo.END
        )
    assert seen == ["e1", "e2"]


def test_a_loop_that_enters_no_event_is_told_so_or_its_effects_would_repeat_in_silence(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = lone.Log({0: "e1", 1: "e2"})
    with lone.consumer_of(lone.LogClient(log), MemoryStore()) as consumer:
        for turn, batch in enumerate(consumer, 1):
            assert [event.id for event in batch] == ["e1", "e2"]
            if turn == 2:
                assert "handed over twice" not in caplog.text
            if turn == 3:
                break
        assert caplog.text.count("offset 0: a batch was handed over twice from here on") == 1


def test_a_ctrl_c_is_no_failed_attempt_of_the_event(caplog: pytest.LogCaptureFixture) -> None:
    def handler(event: eo.Event, tx: eo.KeyValueTx) -> None:
        raise KeyboardInterrupt

    with lone.consumer_of(lone.LogClient(lone.Log({0: "e1"})), MemoryStore()) as consumer:
        with pytest.raises(KeyboardInterrupt):
            consumer.run(handler)
        assert consumer.health().ok
    assert "attempt" not in caplog.text
