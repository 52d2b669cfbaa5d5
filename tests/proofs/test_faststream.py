"""FastStream's subscribers with the middleware, on Apache Kafka: what it promises, and what not."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import ConsumerRecord
from faststream import AckPolicy
from faststream.kafka import KafkaBroker

import effectonce as eo
from effectonce.errors import ConfigError, IdReused, StoreUnavailable, Unidentified
from effectonce.faststream import Guard, OnceMiddleware
from effectonce.model import NO_ID, Partition
from effectonce.ports import Store
from effectonce.stores.memory import MemoryStore
from effectonce.testing.servers import ValkeyServer
from tests.bad_input.kit import PATIENCE_SECONDS
from tests.proofs.kit import RealFlow

pytestmark = pytest.mark.confluent  # FastStream's own consumer: once is enough
Handler = Callable[[str], Awaitable[object]]


def once_of(store: str | Store, **policy: Any) -> eo.Once:
    usual: dict[str, Any] = {"identify": eo.header("event-id"), "effects": eo.Outside("repeat")}
    return eo.Once(store, **{**usual, **policy})


@asynccontextmanager
async def subscribed(
    flow: RealFlow, once: eo.Once, handler: Handler, **how: Any
) -> AsyncIterator[OnceMiddleware]:
    """A broker whose only subscriber is that handler."""
    middleware = OnceMiddleware(once)
    broker = KafkaBroker(
        flow.bootstrap, middlewares=[middleware], logger=None, graceful_timeout=0.1
    )
    usual = {"ack_policy": AckPolicy.NACK_ON_ERROR, "auto_offset_reset": "earliest"}
    broker.subscriber(flow.topic, group_id=flow.group, **{**usual, **how})(handler)
    try:
        await broker.start()
        yield middleware
    finally:
        await broker.stop()
        await middleware.close()


class Target:
    """Counts effects, and says when there were so many."""

    def __init__(self) -> None:
        self.effects: Counter[str] = Counter()
        self._changed = asyncio.Condition()

    async def note(self, what: str) -> str:
        async with self._changed:
            self.effects[what] += 1
            self._changed.notify_all()
        return f"receipt of {what}"

    async def until(self, enough: Callable[[], bool]) -> None:
        async with self._changed, asyncio.timeout(PATIENCE_SECONDS):
            await self._changed.wait_for(enough)


def once_each(target: Target, *names: str) -> bool:
    return target.effects == Counter(names)


def test_copies_are_answered_and_their_handler_does_not_run(flow: RealFlow) -> None:
    async def main() -> None:
        store, target = MemoryStore(), Target()
        for event_id in ("a", "b", "a", "c", "b", "a", "d"):
            flow.produce(event_id.encode(), headers=[("event-id", event_id.encode())])
        async with subscribed(flow, once_of(store), target.note):
            await target.until(lambda: target.effects["d"] > 0)
        assert once_each(target, *"abcd")
        flow.produce(b"e", headers=[("event-id", b"e")])
        flow.produce(b"c", headers=[("event-id", b"c")])
        flow.produce(b"f", headers=[("event-id", b"f")])
        async with subscribed(flow, once_of(store), target.note):
            await target.until(lambda: target.effects["f"] > 0)
        assert once_each(target, *"abcdef")

    asyncio.run(main())


def test_an_event_whose_handler_raised_is_handed_over_again_and_marked_once_it_is_done(
    flow: RealFlow,
) -> None:
    async def main() -> None:
        target, failures = Target(), [2]
        for event_id in ("a", "b", "b"):
            flow.produce(event_id.encode(), headers=[("event-id", event_id.encode())])

        async def flaky(body: str) -> None:
            if body == "a" and failures[0]:
                failures[0] -= 1
                raise ConnectionError("the bank is away")
            await target.note(body)

        async with subscribed(flow, once_of(MemoryStore()), flaky):
            await target.until(lambda: target.effects["b"] > 0)
        assert failures == [0]
        assert once_each(target, "a", "b")

    asyncio.run(main())


def test_an_event_that_was_cancelled_in_its_handler_is_not_marked_or_it_would_be_lost(
    flow: RealFlow,
) -> None:
    async def main() -> None:
        store, target, hangs = MemoryStore(), Target(), asyncio.Event()
        flow.produce(b"a", headers=[("event-id", b"a")])

        async def hang(body: str) -> None:
            hangs.set()
            await asyncio.Event().wait()

        async with subscribed(flow, once_of(store), hang):
            await asyncio.wait_for(hangs.wait(), PATIENCE_SECONDS)
        async with subscribed(flow, once_of(store), target.note):
            await target.until(lambda: target.effects["a"] > 0)
        assert once_each(target, "a")

    asyncio.run(main())


def test_concurrent_copies_wait_for_the_one_that_runs(flow: RealFlow) -> None:
    async def main() -> None:
        target, running, most = Target(), Counter[str](), Counter[str]()
        ids = [str(uuid.UUID(int=n % 5)) for n in range(40)] + ["last"]
        for event_id in ids:
            flow.produce(event_id.encode(), headers=[("event-id", event_id.encode())])

        async def slow(body: str) -> None:
            running[body] += 1
            most[body] = max(most[body], running[body])
            await asyncio.sleep(0.01)  # others come meanwhile
            running[body] -= 1
            await target.note(body)

        how = {"ack_policy": AckPolicy.MANUAL, "max_workers": 8}
        async with subscribed(flow, once_of(MemoryStore()), slow, **how):
            await target.until(lambda: len(target.effects) == 6)
        assert once_each(target, *set(ids))
        assert set(most.values()) == {1}

    asyncio.run(main())


def test_a_store_that_is_down_is_waited_for_and_nothing_is_lost(flow: RealFlow) -> None:
    async def main(valkey: ValkeyServer) -> None:
        target = Target()
        flow.produce(b"a", headers=[("event-id", b"a")])
        async with subscribed(flow, once_of(f"{valkey.url}?timeout=0.5"), target.note):
            await target.until(lambda: target.effects["a"] > 0)
            valkey.kill()
            flow.produce(b"b", headers=[("event-id", b"b")])
            flow.produce(b"a", headers=[("event-id", b"a")])
            flow.produce(b"c", headers=[("event-id", b"c")])
            await asyncio.to_thread(valkey.restart)
            await target.until(lambda: target.effects["c"] > 0)
        assert once_each(target, "a", "b", "c")

    with ValkeyServer.start() as valkey:
        asyncio.run(main(valkey))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"ack_policy": AckPolicy.ACK_FIRST}, "before its handler has run"),
        ({"ack_policy": AckPolicy.ACK}, "though it raised"),
        ({"ack_policy": AckPolicy.REJECT_ON_ERROR}, "though it raised"),
        ({"batch": True}, "batch=True"),
    ],
)
@pytest.mark.filterwarnings("ignore:AckPolicy.REJECT_ON_ERROR has the same")
def test_a_subscriber_that_would_lose_or_hide_events_is_told_so_and_runs_nothing(
    flow: RealFlow, how: dict[str, Any], says: str
) -> None:
    async def main() -> None:
        target, raised = Target(), asyncio.get_running_loop().create_future()
        flow.produce(b"a", headers=[("event-id", b"a")])

        class Heard(OnceMiddleware):
            def __call__(self, msg: Any, /, *, context: Any) -> Any:
                guarded = super().__call__(msg, context=context)
                scope = guarded.consume_scope

                class Listening(type(guarded)):  # type: ignore[misc]
                    async def consume_scope(self, call_next: Any, msg: Any) -> Any:
                        try:
                            return await scope(call_next, msg)
                        except ConfigError as error:
                            if not raised.done():
                                raised.set_result(error)
                            raise

                return Listening(msg, context=context, guard=self._guard)

        middleware = Heard(once_of(MemoryStore()))
        broker = KafkaBroker(flow.bootstrap, middlewares=[middleware], logger=None)
        usual = {"ack_policy": AckPolicy.NACK_ON_ERROR, "auto_offset_reset": "earliest"}
        broker.subscriber(flow.topic, group_id=flow.group, **{**usual, **how})(target.note)
        await broker.start()
        try:
            error = await asyncio.wait_for(raised, PATIENCE_SECONDS)
        finally:
            await broker.stop()
        assert any(says in problem for problem in error.problems)
        assert not target.effects
        async with subscribed(flow, once_of(MemoryStore()), target.note):
            await target.until(lambda: target.effects["a"] > 0)  # no offset has passed it

    asyncio.run(main())


def test_what_the_middleware_cannot_promise_is_refused_at_construction() -> None:
    with pytest.raises(ConfigError, match="no tx"):
        OnceMiddleware(once_of("memory:", effects=eo.InStore()))
    with pytest.raises(ConfigError, match="not str"):
        OnceMiddleware("redis://x")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="shared"):
        OnceMiddleware(once_of("rocksdb:///tmp/nowhere"))


# -- the guard by itself ---------------------------------------------------------------------------

AT = Partition("billing", "billing", "orders", 0)


def record(
    value: bytes, offset: int = 0, event_id: bytes | None = b"a"
) -> ConsumerRecord[Any, Any]:
    headers = () if event_id is None else (("event-id", event_id),)
    return ConsumerRecord(
        "orders", 0, offset, 1_000_000, 0, None, value, None, 0, len(value), headers
    )


async def ran() -> dict[str, int]:
    return {"cents": 5}


async def must_not_run() -> None:
    raise AssertionError("it ran again")


def test_a_repeat_is_answered_with_what_the_handler_returned() -> None:
    async def main() -> None:
        guard = Guard(once_of(MemoryStore()))
        assert await guard.run("billing", record(b"v"), ran) == {"cents": 5}
        assert await guard.run("billing", record(b"v", 7), must_not_run) == {"cents": 5}

    asyncio.run(main())


def test_an_id_with_another_payload_and_a_record_without_one_run_nothing() -> None:
    async def main() -> None:
        guard = Guard(once_of(MemoryStore()))
        await guard.run("billing", record(b"v"), ran)
        with pytest.raises(IdReused):
            await guard.run("billing", record(b"w", 1), must_not_run)
        with pytest.raises(Unidentified):
            await guard.run("billing", record(b"w", 2, None), must_not_run)

    asyncio.run(main())


def test_an_event_is_marked_though_another_member_opened_its_partition_meanwhile() -> None:
    async def main() -> None:
        store = MemoryStore()
        guard, other = Guard(once_of(store)), Guard(once_of(store))

        async def taken_over() -> str:
            await other.run("billing", record(b"x", 1, b"b"), ran)
            return "done"

        assert await guard.run("billing", record(b"v"), taken_over) == "done"
        assert await other.run("billing", record(b"v", 2), must_not_run) == "done"
        assert await guard.run("billing", record(b"x", 3, b"b"), must_not_run) == {"cents": 5}

    asyncio.run(main())


def test_a_copy_waits_for_the_one_that_runs_and_is_answered_with_its_outcome() -> None:
    async def main() -> None:
        guard, began, ends = Guard(once_of(MemoryStore())), asyncio.Event(), asyncio.Event()

        async def slow() -> str:
            began.set()
            await ends.wait()
            return "done"

        first = asyncio.create_task(guard.run("billing", record(b"v"), slow))
        await began.wait()
        copy = asyncio.create_task(guard.run("billing", record(b"v", 1), must_not_run))
        _, waits = await asyncio.wait({copy}, timeout=0.1)
        assert waits == {copy}
        ends.set()
        assert await first == await copy == "done"
        assert not guard._running

    asyncio.run(main())


def test_a_copy_of_one_that_failed_runs_itself() -> None:
    async def main() -> None:
        guard, began, ends = Guard(once_of(MemoryStore())), asyncio.Event(), asyncio.Event()

        async def fails() -> None:
            began.set()
            await ends.wait()
            raise ConnectionError

        first = asyncio.create_task(guard.run("billing", record(b"v"), fails))
        await began.wait()
        copy = asyncio.create_task(guard.run("billing", record(b"v", 1), ran))
        ends.set()
        with pytest.raises(ConnectionError):
            await first
        assert await copy == {"cents": 5}

    asyncio.run(main())


def test_a_partition_that_goes_to_and_fro_between_members_is_opened_again(
    valkey_server: ValkeyServer,
) -> None:
    async def main() -> None:
        scope = f"scope-{uuid.uuid4().hex}"
        one, other = (Guard(once_of(valkey_server.url, scope=scope)) for _ in range(2))
        for n in range(6):
            guard = one if n % 2 else other
            event_id = b"%d" % n
            assert await guard.run("billing", record(b"v", n, event_id), ran) == {"cents": 5}
            again = record(b"v", n + 100, event_id)
            assert await guard.run("billing", again, must_not_run) == {"cents": 5}
        await one.close()
        await other.close()

    asyncio.run(asyncio.wait_for(main(), PATIENCE_SECONDS))


def test_a_commit_without_an_answer_is_sent_again_until_it_has_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        store, lost = MemoryStore(), [3]
        commit = store.commit

        def unanswered(commits: Any) -> Any:
            answers = commit(commits)
            if lost[0]:
                lost[0] -= 1
                from effectonce.model import Unknown

                return [Unknown(StoreUnavailable("no answer")) for _ in answers]
            return answers

        monkeypatch.setattr(store, "commit", unanswered)
        guard = Guard(once_of(store))
        assert await guard.run("billing", record(b"v"), ran) == {"cents": 5}
        assert lost == [0]
        assert await guard.run("billing", record(b"v", 1), must_not_run) == {"cents": 5}

    asyncio.run(main())


def test_a_partition_that_was_a_consumers_of_ours_keeps_its_markers_and_its_position() -> None:
    async def main() -> None:
        store = MemoryStore()
        guard = Guard(once_of(store))
        await guard.run("billing", record(b"v", 41), ran)
        opened = store.open(AT, NO_ID)
        assert opened.row is not None
        assert opened.row.next == 42

    asyncio.run(main())
