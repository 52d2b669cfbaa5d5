"""The async driver broken off in every place, on Apache Kafka: what may be lost or left behind."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

import effectonce as eo
from effectonce.aiokafka_client import AiokafkaClient
from effectonce.errors import BrokerError
from tests.bad_input.kit import PATIENCE_SECONDS
from tests.proofs.kit import RealFlow
from tests.proofs.test_aio_lanes import Target, at_end, ours
from tests.proofs.test_lanes import by_key, send

pytestmark = pytest.mark.confluent


def test_a_lanes_run_after_one_that_failed_loses_nothing(
    flow: RealFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        sent, target = send(flow, list("abcabcdd")), Target()
        real, broken = AiokafkaClient.fetch, [0]

        async def fetch(self: Any, limit: int, seconds: float) -> Any:
            if len(target.seen) >= 3 and not broken[0]:
                broken[0] = 1
                raise BrokerError("the broker said no")
            return await real(self, limit, seconds)

        monkeypatch.setattr(AiokafkaClient, "fetch", fetch)
        gate = asyncio.Event()

        async def handler(event: eo.Event) -> None:
            await target.takes(event)
            if event.key == b"d":
                await gate.wait()

        async with asyncio.timeout(PATIENCE_SECONDS), ours(flow) as it:
            with pytest.raises(BrokerError):
                await it.run(handler, lanes=4)
            gate.set()
            await asyncio.sleep(0.1)
            await it.run(target.takes, until=eo.END, lanes=4)
        print(target.seen, target.maybe)
        assert by_key(target.seen) == by_key(sent)

    asyncio.run(main())


class Odd(BaseException):
    pass


@pytest.mark.parametrize("then", [1, 4])
@pytest.mark.parametrize("broken", ["lane", "identify"])
def test_records_in_hand_when_a_run_is_broken_off_come_again(
    flow: RealFlow, then: int, broken: str
) -> None:
    async def main() -> None:
        sent, target, bad = send(flow, list("abcabcd")), Target(), [1]

        def lane(event: eo.Event) -> object:
            if broken == "lane" and bad:
                bad.clear()
                raise Odd
            return event.key

        async with asyncio.timeout(PATIENCE_SECONDS), ours(flow) as it:
            if broken == "lane":
                with pytest.raises(Odd):
                    await it.run(target.takes, lanes=4, lane=lane)
            else:
                real = it._once.identity.identify

                def identify(records: Any) -> Any:
                    if bad:
                        bad.clear()
                        raise Odd
                    return real(records)

                object.__setattr__(
                    it._once, "identity", type("I", (), {"identify": staticmethod(identify)})
                )
                with pytest.raises(Odd):
                    await it.run(target.takes)
            send_more = send(flow, ["z"])
            await it.run(target.takes, until=eo.END, lanes=then)
        assert by_key(target.seen) == by_key(sent + send_more)

    asyncio.run(main())


def test_handlers_that_start_after_the_cancel_do_not_hold_it_up(flow: RealFlow) -> None:
    async def main() -> None:
        target = Target()
        began = asyncio.Event()
        hang = asyncio.Event()

        async def handler(event: eo.Event) -> None:
            began.set()
            await hang.wait()

        async with asyncio.timeout(PATIENCE_SECONDS), ours(flow) as it:
            run: Any = None

            def lane(event: eo.Event) -> object:
                run.cancel()
                return None

            run = asyncio.create_task(it.run(handler, lanes=4, lane=lane))
            send(flow, list("abc"))
            start = time.monotonic()
            with pytest.raises(asyncio.CancelledError):
                await run
            assert time.monotonic() - start < 8, "?"
            print("took", time.monotonic() - start)
            await it.run(target.takes, until=eo.END, lanes=2)
        assert len(target.seen) == 3

    asyncio.run(main())


def test_a_loop_that_was_blocked_past_the_deadline_costs_no_membership(flow: RealFlow) -> None:
    async def main() -> None:
        sent, target, calls = send(flow, list("abcd")), Target(), Counter()

        async def handler(event: eo.Event) -> None:
            calls[event.id] += 1
            if event.key == b"d" and calls[event.id] == 1:
                time.sleep(2.5)
            elif calls[event.id] == 1:
                await asyncio.sleep(0.2)
            await target.takes(event)

        async with asyncio.timeout(PATIENCE_SECONDS), ours(flow, handler_timeout_seconds=0.5) as it:
            await it.run(handler, until=eo.END, lanes=4)
        print(calls, target.maybe)
        assert set(target.seen) == set(sent)

    asyncio.run(main())


@pytest.mark.parametrize("lanes", [1, 4])
def test_close_from_several_tasks(flow: RealFlow, lanes: int) -> None:
    async def main() -> None:
        send(flow, list("abcd"))
        target, began = Target(), asyncio.Event()

        async def handler(event: eo.Event) -> None:
            began.set()
            await asyncio.sleep(0.3)
            await target.takes(event)

        it = ours(flow)
        run = asyncio.create_task(it.run(handler, lanes=lanes))
        await began.wait()
        async with asyncio.timeout(PATIENCE_SECONDS):
            closes = [asyncio.create_task(it.close()) for _ in range(3)]
            await asyncio.wait(closes, return_when=asyncio.FIRST_COMPLETED)
            assert it._client is not None and it._client._consumer._closed
            await asyncio.gather(*closes, run)
        await at_end(flow, target)
        assert len(target.seen) == 4

    asyncio.run(main(), debug=True)


def test_close_beside_a_loop_of_the_users(flow: RealFlow) -> None:
    async def main() -> None:
        send(flow, list("abcd"))
        got = asyncio.Event()
        it = ours(flow)

        async def loop() -> int:
            n = 0
            async for batch in it:
                for event in batch:
                    with event:
                        n += 1
                got.set()
            return n

        task = asyncio.create_task(loop())
        await got.wait()
        await asyncio.sleep(0.3)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await it.close()
            assert await task == 4

    asyncio.run(main(), debug=True)


@pytest.mark.parametrize("lanes", [1, 4])
def test_a_loop_beside_a_run_is_refused(flow: RealFlow, lanes: int) -> None:
    async def main() -> None:
        sent = send(flow, list("abcd"))
        target, began = Target(), asyncio.Event()

        async def handler(event: eo.Event) -> None:
            began.set()
            await asyncio.sleep(0.1)
            await target.takes(event)

        async with asyncio.timeout(PATIENCE_SECONDS), ours(flow) as it:
            run = asyncio.create_task(it.run(handler, lanes=lanes))
            await began.wait()
            for _ in range(2):
                with pytest.raises(RuntimeError):
                    await it.__anext__()
                await target.until(lambda: len(target.seen) == 4)
                await asyncio.sleep(0.5)
            it.stop()
            await run
        assert Counter(target.seen) == Counter(sent)

    asyncio.run(main(), debug=True)
