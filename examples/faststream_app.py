"""A FastStream subscriber whose effects happen once: one middleware, and an honest ack policy.

FastStream owns the consumer and the offsets; effectonce answers repeats before the handler runs and
marks an event once it is done. Its default policy acknowledges first, which loses events in a
crash: that is refused.

    KAFKA_BOOTSTRAP=localhost:9092 REDIS=redis://localhost python examples/faststream_app.py
"""

import asyncio
import os

from faststream import AckPolicy, FastStream
from faststream.kafka import KafkaBroker

import effectonce as eo
from effectonce.faststream import OnceMiddleware

once = eo.Once(
    os.environ["REDIS"],
    identify=eo.header("event-id"),
    effects=eo.Outside(on_doubt="repeat"),
    scope="mails",
)
middleware = OnceMiddleware(once)
broker = KafkaBroker(os.environ["KAFKA_BOOTSTRAP"], middlewares=[middleware])
app = FastStream(broker, after_shutdown=[middleware.close])


@broker.subscriber(
    "signups",
    group_id="mailer",
    ack_policy=AckPolicy.NACK_ON_ERROR,
    auto_offset_reset="earliest",
)
async def welcome(signup: dict[str, str]) -> str:
    print(f"mail to {signup['address']}", flush=True)
    return "sent"


if __name__ == "__main__":
    asyncio.run(app.run())
