"""What only the async driver does: it is cancelled, shares its loop, breaks handlers off."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
import uvloop
from aiokafka.cluster import ClusterMetadata
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.errors import KafkaConnectionError

import effectonce as eo
from effectonce.aiokafka_client import AiokafkaClient
from effectonce.assignment import Assignment
from effectonce.hooks import BatchCommitted, PartitionBegan
from effectonce.model import Committed
from effectonce.ports import CommitMode, KafkaOffset
from effectonce.testing.plugin import TopicFactory
from effectonce.testing.servers import KafkaServer
from tests.bad_input.kit import PATIENCE_SECONDS, QUICK_RETRY, Watch, once_each
from tests.proofs.kit import RealFlow


class AioFlow(RealFlow):
    """With async consumers made in the loop that runs."""

    def aio(self, **how: Any) -> eo.AsyncOnceConsumer:
        usual = {"identify": eo.header("event-id"), "effects": eo.InStore(), "retry": QUICK_RETRY}
        once = eo.Once(f"rocksdb://{self.state}", **{**usual, **how})
        return eo.AsyncOnceConsumer(
            self.topic,
            once=once,
            bootstrap_servers=self.bootstrap,
            group_id=self.group,
            session_timeout_ms=6000,
        )


@pytest.fixture
def made(
    kafka_server: KafkaServer, kafka_topic: TopicFactory, tmp_path: Path, watch: Watch
) -> Callable[[int], AioFlow]:
    return lambda partitions: AioFlow(
        kafka_server, kafka_topic(partitions), tmp_path / "state", watch, "aiokafka"
    )


@pytest.fixture
def flow(made: Callable[[int], AioFlow]) -> AioFlow:
    return made(1)


async def count(event: eo.Event, tx: eo.AsyncKeyValueTx) -> None:
    key = event.id.encode()
    tx.put(key, b"%d" % (int(await tx.get(key) or b"0") + 1))


def run(main: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await main

    asyncio.run(limited())


async def until(what: Callable[[], object]) -> None:
    while not what():
        await asyncio.sleep(0.01)


def fresh(flow: RealFlow) -> int:
    return sum(batch.fresh for batch in flow.watch.of(BatchCommitted))


# -- cancelled -----------------------------------------------------------------------------------


def test_a_cancelled_run_commits_what_ended_and_its_event_is_neither_done_nor_failed(
    flow: AioFlow, caplog: pytest.LogCaptureFixture
) -> None:
    ids = flow.send(4)

    async def main() -> None:
        reached = asyncio.Event()

        async def handler(event: eo.Event, tx: eo.AsyncKeyValueTx) -> None:
            await count(event, tx)
            if event.id == ids[2]:
                reached.set()
                await asyncio.sleep(PATIENCE_SECONDS)

        async with flow.aio() as consumer:
            running = asyncio.create_task(consumer.run(handler))
            await reached.wait()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

    run(main())
    assert flow.effects() == once_each(ids[:2])
    told = flow.committed()
    assert told is not None
    assert told.offset == flow.position().next == 2
    assert "attempt 1" not in caplog.text, "nobody tried in vain"
    flow.job()
    assert flow.effects() == once_each(ids)


def test_outside_a_cancelled_event_says_that_it_may_have_run_and_no_finished_one_runs_again(
    flow: AioFlow,
) -> None:
    ids, ran = flow.send(4), list[tuple[str, bool]]()

    async def main() -> None:
        reached = asyncio.Event()

        async def hangs(event: eo.Event) -> None:
            ran.append((event.id, event.maybe_repeated))
            if event.id == ids[2]:
                reached.set()
                await asyncio.sleep(PATIENCE_SECONDS)

        async def handler(event: eo.Event) -> None:
            ran.append((event.id, event.maybe_repeated))

        effects = eo.Outside(on_doubt="repeat")
        async with flow.aio(effects=effects) as consumer:
            running = asyncio.create_task(consumer.run(hangs))
            await reached.wait()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
        async with flow.aio(effects=effects) as consumer:
            await consumer.run(handler, until=eo.END)

    run(main())
    assert ran[:3] == [(each, False) for each in ids[:3]]
    assert [each for each, _ in ran[3:]] == ids[2:]
    assert ran[3] == (ids[2], True)


def test_a_handler_that_ends_well_though_cancelled_is_done(flow: AioFlow) -> None:
    ids = flow.send(2)

    async def main() -> None:
        reached = asyncio.Event()

        async def handler(event: eo.Event, tx: eo.AsyncKeyValueTx) -> None:
            reached.set()
            try:
                await asyncio.sleep(PATIENCE_SECONDS)
            except asyncio.CancelledError:
                await count(event, tx)

        async with flow.aio() as consumer:
            running = asyncio.create_task(consumer.run(handler))
            await reached.wait()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

    run(main())
    assert flow.effects() == once_each(ids[:1])


def test_a_cancelled_batch_is_rolled_back_whole(flow: AioFlow) -> None:
    ids = flow.send(3)

    async def main() -> None:
        reached = asyncio.Event()

        async def handler(batch: eo.Batch, tx: eo.AsyncKeyValueTx) -> None:
            for event in batch:
                await count(event, tx)
                event.done()
            reached.set()
            await asyncio.sleep(PATIENCE_SECONDS)

        async with flow.aio() as consumer:
            running = asyncio.create_task(consumer.run_batches(handler))
            await reached.wait()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

    run(main())
    assert not flow.effects()
    assert flow.position().next == 0
    flow.job()
    assert flow.effects() == once_each(ids)


def test_closing_beside_a_run_waits_for_the_event_in_the_handler(flow: AioFlow) -> None:
    ids = flow.send(3)

    async def main() -> None:
        reached, go_on = asyncio.Event(), asyncio.Event()

        async def handler(event: eo.Event, tx: eo.AsyncKeyValueTx) -> None:
            reached.set()
            await go_on.wait()
            await count(event, tx)

        consumer = flow.aio()
        running = asyncio.create_task(consumer.run(handler))
        await reached.wait()
        with pytest.raises(RuntimeError, match="runs already"):
            await consumer.run(handler)
        closing = asyncio.create_task(consumer.close())
        await asyncio.sleep(0)
        go_on.set()
        await closing
        await running

    run(main())
    assert flow.effects() == once_each(ids[:1])


def test_a_start_while_no_broker_is_alive_waits_for_one(
    flow: AioFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = flow.send(1)
    update, fenced = ClusterMetadata.update_metadata, [1]

    def update_metadata(self: ClusterMetadata, metadata: Any) -> None:
        if fenced:  # aiokafka overlooks a list without brokers
            fenced.pop()
        else:
            update(self, metadata)

    monkeypatch.setattr(ClusterMetadata, "update_metadata", update_metadata)

    async def main() -> None:
        async with flow.aio() as consumer:
            await consumer.run(count, until=eo.END)

    run(main())
    assert flow.effects() == once_each(ids)


def test_closing_while_a_fetch_backs_off_raises_nothing_and_leaves_nothing_open(
    flow: AioFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow.send(1)

    async def main() -> None:
        reached, before = asyncio.Event(), asyncio.all_tasks()

        async def backs_off(self: Fetcher, *request: object) -> bool:
            reached.set()
            await asyncio.sleep(PATIENCE_SECONDS)
            return False

        monkeypatch.setattr(Fetcher, "_proc_fetch_request", backs_off)
        consumer = flow.aio()
        running = asyncio.create_task(consumer.run(count))
        await reached.wait()
        await consumer.close()
        await running
        await until(lambda: asyncio.all_tasks() == before)

    run(main())


def test_closing_twice_beside_a_run_waits_each_time_until_the_group_is_left(
    flow: AioFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow.send(1)
    leave, left = AiokafkaClient.close, list[str]()

    async def slowly(self: AiokafkaClient) -> None:
        await leave(self)
        left.append("the group")

    monkeypatch.setattr(AiokafkaClient, "close", slowly)

    async def main() -> None:
        reached = asyncio.Event()

        async def handler(event: eo.Event, tx: eo.AsyncKeyValueTx) -> None:
            reached.set()

        async def close() -> None:
            await consumer.close()
            assert left == ["the group"]

        consumer = flow.aio()
        running = asyncio.create_task(consumer.run(handler))
        await reached.wait()
        await asyncio.gather(close(), close(), running)
        await close()

    run(main())


def test_a_loop_of_ones_own_beside_a_run_is_refused_or_both_would_take_records(
    flow: AioFlow,
) -> None:
    ids = flow.send(2)

    async def main() -> None:
        async with flow.aio() as consumer:
            running = asyncio.create_task(consumer.run(count))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="runs already"):
                await anext(consumer)
            consumer.stop()
            await running

    run(main())
    flow.job()
    assert flow.effects() == once_each(ids)


# -- deadlines -----------------------------------------------------------------------------------


def test_a_handler_past_its_deadline_is_broken_off_rolled_back_and_tried_again(
    flow: AioFlow,
) -> None:
    ids, tries = flow.send(2), list[str]()

    async def main() -> None:
        async def handler(event: eo.Event, tx: eo.AsyncKeyValueTx) -> None:
            await count(event, tx)
            tries.append(event.id)
            if len(tries) == 1:
                await asyncio.sleep(PATIENCE_SECONDS)

        limits = eo.Limits(handler_timeout_seconds=0.2)
        async with flow.aio(limits=limits) as consumer:
            await consumer.run(handler, until=eo.END)

    run(main())
    assert tries == [ids[0], *ids]
    assert flow.effects() == once_each(ids)


def test_a_handler_that_swallows_its_deadline_writes_nothing_and_another_takes_over(
    flow: AioFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("effectonce.aio.GRACE_SECONDS", 0.2)
    ids = flow.send(2)

    async def main() -> None:
        reached, go_on = asyncio.Event(), asyncio.Event()

        async def swallows(event: eo.Event, tx: eo.AsyncKeyValueTx) -> None:
            await count(event, tx)
            reached.set()
            while not go_on.is_set():
                with suppress(asyncio.CancelledError):
                    await go_on.wait()
            with pytest.raises(eo.TransactionClosed):
                tx.put(b"late", b"1")

        async with flow.aio(limits=eo.Limits(handler_timeout_seconds=0.3)) as consumer:
            running = asyncio.create_task(consumer.run(swallows))
            await reached.wait()
            async with flow.aio() as successor:
                await successor.run(count, until=eo.END)
            assert not running.done(), "it hangs still, and holds nobody up"
            go_on.set()
            with pytest.raises(eo.HandlerTimeout):
                await running

    run(main())
    assert flow.effects() == once_each(ids)


# -- loops ---------------------------------------------------------------------------------------


def test_leaving_an_async_loop_early_commits_what_ended_and_never_what_was_not_entered(
    flow: AioFlow,
) -> None:
    ids = flow.send(5)

    async def main() -> None:
        async with flow.aio() as consumer:
            async for batch in consumer:
                for event in batch:
                    with event as tx:
                        await count(event, cast(eo.AsyncKeyValueTx, tx))
                    if event.id == ids[1]:
                        break
                break

    run(main())
    assert flow.effects() == once_each(ids[:2])
    assert flow.position().next == 2
    flow.job()
    assert flow.effects() == once_each(ids)


def test_a_loop_cancelled_as_it_waits_for_a_batch_can_be_gone_on_with(flow: AioFlow) -> None:
    async def main() -> None:
        async with flow.aio() as consumer:
            for _ in range(5):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.03):
                        await anext(consumer)
            ids = flow.send(3)
            batch = await anext(consumer)
            for event in batch:
                with event as tx:
                    await count(event, cast(eo.AsyncKeyValueTx, tx))
            assert batch.ids() == ids[: len(batch)]

    run(main())
    flow.job()
    assert flow.effects() == once_each(flow.ids)


def test_a_revoke_waits_for_the_event_in_a_loop_of_the_users_own(flow: AioFlow) -> None:
    ids, ran = flow.send(1), list[str]()

    async def noting(event: eo.Event, tx: eo.AsyncKeyValueTx) -> None:
        ran.append(event.id)
        await count(event, tx)

    async def main() -> None:
        async with flow.aio() as first, flow.aio() as second:
            batch = await anext(first)
            successor = asyncio.create_task(second.run(noting))
            with batch[0] as tx:
                await count(batch[0], cast(eo.AsyncKeyValueTx, tx))
                await until(lambda: any(owned.leaving for owned in first._ours.partitions()))
                await asyncio.sleep(0.2)  # the revoke waits; it would be over by now
            following = asyncio.create_task(first.run(noting))
            (later,) = flow.send(1)
            await until(lambda: fresh(flow) == 2)
            first.stop()
            second.stop()
            await asyncio.gather(successor, following)
            ids.append(later)

    run(main())
    assert ran == ids[1:], "what was in the loop ran there alone"
    assert flow.effects() == once_each(ids)


def test_several_consumers_of_one_loop_share_a_group_and_all_hear_sigterm(
    made: Callable[[int], AioFlow],
) -> None:
    flow = made(4)
    for partition in range(4):
        flow.send(10, partition)
    assert threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)

    async def main() -> None:
        async with flow.aio() as first, flow.aio() as second:
            runs = [asyncio.create_task(each.run(count)) for each in (first, second)]
            await until(lambda: fresh(flow) == 40)
            await until(lambda: first.health().partitions and second.health().partitions)
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.gather(*runs)

    run(main())
    assert signal.getsignal(signal.SIGTERM) is before
    assert flow.effects() == once_each(flow.ids)


def test_uvloop_runs_it_and_sigterm_drains_there_too(flow: AioFlow) -> None:
    ids = flow.send(20)

    async def main() -> None:
        async with asyncio.timeout(PATIENCE_SECONDS), flow.aio() as consumer:
            running = asyncio.create_task(consumer.run(count))
            await until(lambda: fresh(flow) == 20)
            os.kill(os.getpid(), signal.SIGTERM)
            await running

    uvloop.run(main())
    assert flow.effects() == once_each(ids)


# -- aiokafka ------------------------------------------------------------------------------------


def test_what_a_callback_raises_ends_the_run_or_aiokafka_would_swallow_it(
    flow: AioFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(self: Assignment, partitions: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Assignment, "on_assigned", breaks)

    async def main() -> None:
        async with flow.aio() as consumer:
            with pytest.raises(ZeroDivisionError):
                await consumer.run(count)

    run(main())


def test_records_that_were_taken_as_another_partition_failed_are_not_lost(
    made: Callable[[int], AioFlow], monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = made(1)
    real, left = AiokafkaClient._bounded, [3]

    async def fails(self: AiokafkaClient, limit: int, seconds: float) -> dict[Any, Any]:
        found = await real(self, limit, seconds)
        if found and left[0]:
            left[0] -= 1
            raise KafkaConnectionError("and what was found is gone")
        return found

    monkeypatch.setattr(AiokafkaClient, "_bounded", fails)
    ids = flow.send(30)

    async def main() -> None:
        async with flow.aio(limits=eo.Limits(batch=7)) as consumer:
            await consumer.run(count, until=eo.END)

    run(main())
    assert left == [0]
    assert flow.effects() == once_each(ids)


async def client_of(flow: AioFlow) -> AiokafkaClient:
    settings = {"bootstrap_servers": flow.bootstrap, "group_id": flow.group}
    client = AiokafkaClient(settings, None, asyncio.Lock())
    await client._consumer.start()
    return client


def test_each_driver_reads_the_others_witness_or_one_could_not_follow_the_other(
    flow: AioFlow,
) -> None:
    """confluent-kafka ends metadata by a NUL, and reads on where there is none (seen: 72 bytes)."""

    async def main() -> None:
        client = await client_of(flow)
        for length in range(64, 82):
            written = Committed(length, "w" * length)
            flow.commit_plainly(length, metadata=written.metadata)
            assert await client.committed([(flow.topic, 0)]) == {(flow.topic, 0): written}
            told = KafkaOffset(flow.topic, 0, 100 + length, written.metadata)
            await client.commit([told], CommitMode.SYNC)
            assert flow.committed() == Committed(100 + length, written.metadata)
        await client.close()

    run(main())


@pytest.mark.parametrize("code", [14, 15, 16], ids=["loading", "not available", "moved"])
def test_an_error_of_the_whole_group_is_not_taken_for_nothing_committed(
    flow: AioFlow, code: int
) -> None:
    """aiokafka's own `committed` overlooks it: a start would believe that Kafka knows nothing."""

    class Answer:
        error_code = code
        topics: tuple[()] = ()

    async def main() -> None:
        client = await client_of(flow)

        async def refused(request: object) -> Answer:
            return Answer()

        client._consumer._coordinator._send_req = refused
        with pytest.raises(eo.BrokerError):
            await client.committed([(flow.topic, 0)])
        del client._consumer._coordinator._send_req
        assert await client.committed([(flow.topic, 0)]) == {(flow.topic, 0): None}
        await client.close()

    run(main())


def test_a_broker_that_is_not_there_is_said_and_the_consumer_can_start_later(
    flow: AioFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("effectonce.aiokafka_client.CALL_SECONDS", 1.0)
    ids = flow.send(1)
    address, flow.bootstrap = flow.bootstrap, "127.0.0.1:9"

    async def main() -> None:
        async with flow.aio() as consumer:
            with pytest.raises(eo.BrokerError, match="no broker answered"):
                await consumer.run(count, until=eo.END)
            consumer._settings["bootstrap_servers"] = address
            await consumer.run(count, until=eo.END)

    run(main())
    flow.bootstrap = address
    assert flow.effects() == once_each(ids)


def test_a_coroutine_that_was_not_awaited_stops_the_run_or_its_event_would_be_done_without_effect(
    flow: AioFlow,
) -> None:
    ids = flow.send(1)

    async def forgets(event: eo.Event, tx: eo.AsyncKeyValueTx) -> object:
        return count(event, tx)

    async def main() -> None:
        async with flow.aio() as consumer:
            with pytest.raises(eo.ConfigError, match="await it"):
                await consumer.run(forgets)

    run(main())
    assert not flow.effects()
    flow.job()
    assert flow.effects() == once_each(ids)


def test_an_unknown_topic_is_said_and_never_made(flow: AioFlow) -> None:
    flow.topic = f"{flow.topic}-not"

    async def main() -> None:
        async with flow.aio() as consumer:
            with pytest.raises(eo.UnknownTopic, match=flow.topic):
                await consumer.run(count)

    run(main())
    assert not flow.watch.of(PartitionBegan)
