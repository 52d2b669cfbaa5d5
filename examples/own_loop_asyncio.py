"""The same loop for asyncio: aiokafka's `async for message in consumer`, and what takes its place.

async for message in consumer:                 async for batch in consumer:
    await handle(message)                          for event in batch:
    await consumer.commit()                            with event:
                                                           await handle(event)

KAFKA_BOOTSTRAP=localhost:9092 python examples/own_loop_asyncio.py STATE_DIRECTORY
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

import effectonce as eo


async def main(state: str) -> None:
    once = eo.Once(
        f"rocksdb://{state}/once",
        identify=eo.header("event-id"),
        effects=eo.Outside(on_doubt="repeat"),
    )
    async with eo.AsyncOnceConsumer(
        "orders",
        once=once,
        bootstrap_servers=os.environ["KAFKA_BOOTSTRAP"],
        group_id="shipping",
    ) as consumer:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, consumer.stop)
        async for batch in consumer:
            for event in batch:
                with event:
                    await ship(event)


async def ship(event: eo.Event) -> None:
    """Stands for a call of another service, which honours idempotency keys."""
    await asyncio.sleep(0)
    print(f"shipped {event.json()['order']} under {event.key_for('depot')}", flush=True)


if __name__ == "__main__":
    asyncio.run(main(str(Path(sys.argv[1]).resolve())))
