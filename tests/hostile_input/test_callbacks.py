"""What users do from inside: close in a handler, raise in a callback of the client's."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

import pytest

import effectonce as eo
from tests.bad_input.kit import KIP_848, Flow, count, once_each

CLOSERS: dict[str, Callable[[eo.OnceConsumer], None]] = {
    "itself": eo.OnceConsumer.close,
    "in a thread": lambda consumer: _in_a_thread(consumer.close),
}


def _in_a_thread(call: Callable[[], object]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()


@pytest.mark.parametrize("how", CLOSERS)
def test_a_handler_that_closes_its_consumer_loses_nothing(flow: Flow, how: str) -> None:
    ids = flow.send(5)
    ran: Counter[str] = Counter()
    with flow.consumer(limits=eo.Limits(batch=2)) as consumer:

        def handler(event: eo.Event, tx: eo.KeyValueTx) -> None:
            ran[event.id] += 1
            count(event, tx)
            CLOSERS[how](consumer)

        with pytest.raises(RuntimeError, match="closed"):
            consumer.run(handler, until=eo.END)
    assert ran.total() == 1
    flow.job()
    assert flow.effects() == once_each(ids)


def test_a_callback_that_raises_loses_no_record_that_was_on_its_way(flow: Flow) -> None:
    ids = flow.send(200)
    calls = 0

    def statistics(text: str) -> None:
        nonlocal calls
        calls += 1
        if calls % 3 == 0 and calls < 40:
            raise OSError("the user's own")

    config = {**KIP_848, "stats_cb": statistics, "statistics.interval.ms": 5}
    raised = 0
    with flow.consumer(config=config, limits=eo.Limits(batch=7)) as consumer:
        while True:
            try:
                consumer.run(count, until=eo.END)
            except OSError:
                raised += 1
            else:
                break
        calls = 40  # closing may call it too
    assert raised
    assert flow.effects() == once_each(ids)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), MemoryError()])
def test_an_exit_while_an_id_is_looked_for_loses_nothing_even_if_the_run_goes_on(
    flow: Flow, error: BaseException
) -> None:
    ids = flow.send(6)
    asked = 0

    def find(record: object) -> object:
        nonlocal asked
        asked += 1
        if asked == 4:
            raise error
        return dict(record.headers)["event-id"]  # type: ignore[attr-defined]

    with flow.consumer(identify=eo.custom(find, version="1"), limits=eo.Limits(batch=2)) as mine:  # type: ignore[arg-type]
        with pytest.raises(type(error)):
            mine.run(count, until=eo.END)
        mine.run(count, until=eo.END)
    assert flow.effects() == once_each(ids)
