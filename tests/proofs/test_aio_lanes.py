"""Lanes in tasks, on Apache Kafka: what only the async driver does. The rest is test_lanes.py."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta

import pytest

import effectonce as eo
from effectonce.aio import GRACE_SECONDS
from effectonce.aiokafka_client import AiokafkaClient
from effectonce.errors import BrokerError
from effectonce.ports import Records
from tests.bad_input.kit import PATIENCE_SECONDS
from tests.proofs.aio_kit import consumer
from tests.proofs.kit import RealFlow
from tests.proofs.test_lanes import OUTSIDE, by_key, send

QUICK = eo.Retry(attempts=3, wait_initial=timedelta(milliseconds=1))


def ours(flow: RealFlow, **limits: float) -> eo.AsyncOnceConsumer:
    once = eo.Once(
        f"rocksdb://{flow.state}",
        identify=eo.header("event-id"),
        effects=OUTSIDE,
        retry=QUICK,
        limits=eo.Limits(**limits),  # type: ignore[arg-type]
    )
    config = {"bootstrap.servers": flow.bootstrap, "group.id": flow.group}
    return consumer(config, [flow.topic], once)


class Target:
    """Effects in the order in which they arrive, by key."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self.maybe: set[str] = set()
        self._changed = asyncio.Condition()

    async def takes(self, event: eo.Event) -> None:
        async with self._changed:
            self.seen.append(((event.key or b"").decode(), event.id))
            if event.maybe_repeated:
                self.maybe.add(event.id)
            self._changed.notify_all()

    async def until(self, enough: Callable[[], bool]) -> None:
        async with self._changed, asyncio.timeout(PATIENCE_SECONDS):
            await self._changed.wait_for(enough)


async def at_end(flow: RealFlow, target: Target) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS), ours(flow) as once_more:
        await once_more.run(target.takes, until=eo.END, lanes=4)


@pytest.mark.confluent
def test_a_handler_past_its_deadline_is_cancelled_and_tried_again_while_the_others_go_on(
    flow: RealFlow,
) -> None:
    async def main() -> None:
        sent = send(flow, ["slow", *"abcabcabc", "slow"])
        target, calls = Target(), Counter[str]()

        async def handler(event: eo.Event) -> None:
            calls[event.id] += 1
            if event.id == sent[0][1] and calls[event.id] == 1:
                await asyncio.Event().wait()
            await target.takes(event)

        async with asyncio.timeout(PATIENCE_SECONDS), ours(flow, handler_timeout_seconds=0.5) as it:
            await it.run(handler, until=eo.END, lanes=4)
        assert calls[sent[0][1]] == 2
        assert target.maybe == {sent[0][1]}, "it was cancelled, and may have had its effect"
        assert [key for key, _ in target.seen].index("slow") == 9, "the others did not wait"
        assert by_key(target.seen) == by_key(sent)

    asyncio.run(main())


@pytest.mark.confluent
def test_a_handler_that_swallows_its_cancellation_is_cut_off_and_the_others_are_kept(
    flow: RealFlow,
) -> None:
    async def main() -> None:
        sent = send(flow, ["a", "hangs", "b", "c"])
        target, gate = Target(), asyncio.Event()

        async def handler(event: eo.Event) -> None:
            while event.key == b"hangs" and not gate.is_set():
                try:
                    await gate.wait()
                except asyncio.CancelledError:
                    continue
            if event.key != b"hangs":
                await target.takes(event)

        with pytest.raises(eo.HandlerTimeout):
            async with ours(flow, handler_timeout_seconds=0.5, drain_seconds=0.1) as it:
                await it.run(handler, lanes=4)
        assert sorted(key for key, _ in target.seen) == ["a", "b", "c"]
        gate.set()
        await at_end(flow, target)
        assert [event_id for _, event_id in target.seen[3:]] == [sent[1][1]]

    asyncio.run(main())


@pytest.mark.confluent
def test_a_cancelled_run_keeps_what_was_done_and_doubts_what_ran(flow: RealFlow) -> None:
    async def main() -> None:
        sent = send(flow, [*"abcdefgh", "hangs", "hangs too", *"ijkl"])
        target = Target()

        async def handler(event: eo.Event) -> None:
            if (event.key or b"").startswith(b"hangs"):
                await asyncio.Event().wait()
            await target.takes(event)

        async with ours(flow) as it:
            run = asyncio.create_task(it.run(handler, lanes=4))
            await target.until(lambda: len(target.seen) == 12)
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
        await at_end(flow, target)
        assert Counter(target.seen) == Counter(sent), "nothing is lost, and nothing repeated"
        assert target.maybe >= {sent[8][1], sent[9][1]}

    asyncio.run(main())


@pytest.mark.confluent
def test_sys_exit_in_a_lane_lets_the_others_end_and_leaves_its_event_unmarked(
    flow: RealFlow,
) -> None:
    async def main() -> None:
        sent = send(flow, [*"abc", "exits", *"de"])
        target, left = Target(), asyncio.Event()

        async def handler(event: eo.Event) -> None:
            if event.key == b"exits" and not left.is_set():
                left.set()
                sys.exit(3)
            await target.takes(event)

        async with ours(flow) as it:
            with pytest.raises(SystemExit):
                await it.run(handler, lanes=2)
        await at_end(flow, target)
        assert Counter(target.seen) == Counter(sent)

    asyncio.run(main())


@pytest.mark.confluent
def test_two_consumers_of_one_loop_have_lanes_of_their_own(
    flows: Callable[[int], RealFlow],
) -> None:
    async def main() -> None:
        one, other = flows(2), flows(1)
        sent = [send(one, list("abcd") * 50, 2), send(other, list("wxyz") * 50)]
        targets = [Target(), Target()]
        async with asyncio.timeout(PATIENCE_SECONDS), ours(one) as first, ours(other) as second:
            await asyncio.gather(
                first.run(targets[0].takes, until=eo.END, lanes=8),
                second.run(targets[1].takes, until=eo.END, lanes=8),
            )
        for target, produced in zip(targets, sent, strict=True):
            assert by_key(target.seen) == by_key(produced)

    asyncio.run(main())


@pytest.mark.confluent
def test_a_handler_that_closes_its_own_consumer_is_told_so(flow: RealFlow) -> None:
    async def main() -> None:
        send(flow, ["a"])
        told = asyncio.get_running_loop().create_future()

        async def handler(event: eo.Event) -> None:
            try:
                await it.close()
            except RuntimeError as error:
                told.set_result(str(error))

        async with asyncio.timeout(PATIENCE_SECONDS), ours(flow) as it:
            await it.run(handler, until=eo.END, lanes=2)
        assert "stop()" in await told

    asyncio.run(main())


@pytest.mark.confluent
def test_a_lanes_run_after_one_that_failed_goes_on_where_that_was(
    flow: RealFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        sent, target = send(flow, [*"abcabc", "slow", "slow"]), Target()
        fetch, no, ended = AiokafkaClient.fetch, [BrokerError("no")], asyncio.Event()

        async def fails_once(self: AiokafkaClient, limit: int, seconds: float) -> Sequence[Records]:
            if len(target.seen) >= 7 and no:
                raise no.pop()
            return await fetch(self, limit, seconds)

        monkeypatch.setattr(AiokafkaClient, "fetch", fails_once)
        gate = asyncio.Event()

        async def handler(event: eo.Event) -> None:
            await target.takes(event)
            if event.key == b"slow":
                await gate.wait()
                ended.set()

        async with asyncio.timeout(PATIENCE_SECONDS), ours(flow) as it:
            with pytest.raises(BrokerError):
                await it.run(handler, lanes=4)
            with pytest.raises(RuntimeError, match="in a handler"):
                await it.run(handler, lanes=4)
            gate.set()
            await ended.wait()
            await it.run(target.takes, until=eo.END, lanes=4)
        assert by_key(target.seen) == by_key(sent), "also the one that ended between the runs"

    asyncio.run(main())


@pytest.mark.confluent
def test_a_handler_of_a_run_that_was_cancelled_just_before_does_not_begin(flow: RealFlow) -> None:
    async def main() -> None:
        send(flow, ["a", "b"])
        began = list[str]()

        async def handler(event: eo.Event) -> None:
            began.append(event.id)
            await asyncio.Event().wait()

        def lane(event: eo.Event) -> None:
            run.cancel()

        async with asyncio.timeout(PATIENCE_SECONDS), ours(flow) as it:
            run = asyncio.create_task(it.run(handler, lanes=4, lane=lane))
            with pytest.raises(asyncio.CancelledError):
                await run
            assert not began
            target = Target()
            await it.run(target.takes, until=eo.END, lanes=4)
            assert len(target.seen) == 2

    asyncio.run(main())


@pytest.mark.confluent
def test_a_loop_that_was_blocked_past_all_deadlines_cuts_nobody_off(flow: RealFlow) -> None:
    async def main() -> None:
        sent, target, blocks = send(flow, [*"abc", "blocks"]), Target(), [GRACE_SECONDS + 1.0]

        async def handler(event: eo.Event) -> None:
            if event.key == b"blocks" and blocks:
                time.sleep(blocks.pop())
            elif blocks:
                await asyncio.Event().wait()  # is told only afterwards that its time is over
            await target.takes(event)

        async with asyncio.timeout(PATIENCE_SECONDS), ours(flow, handler_timeout_seconds=0.5) as it:
            await it.run(handler, until=eo.END, lanes=4)
        assert set(target.seen) == set(sent)

    asyncio.run(main())
