"""A member with lanes in a process of its own, to be killed: its effects are lines of a file.

A line is `KEY ID first|maybe`, written before the handler returns: what stands there has happened.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from typing import Any, Final

import effectonce as eo

LANES: Final = 16
COMMIT_SECONDS: Final = 0.02
HANDLER_SECONDS: Final = 0.005


def main(job: dict[str, Any]) -> None:
    target = os.open(job["target"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    chance = random.Random(job["seed"])

    def handler(event: eo.Event) -> None:
        time.sleep(HANDLER_SECONDS * chance.random())
        word = "maybe" if event.maybe_repeated else "first"
        key = (event.key or b"").decode()
        os.write(target, f"{key} {event.id} {word}\n".encode())
        time.sleep(HANDLER_SECONDS * chance.random())

    once = eo.Once(
        f"rocksdb://{job['state']}",
        identify=eo.header("event-id"),
        effects=eo.Outside(on_doubt="repeat"),
        limits=eo.Limits(commit_seconds=COMMIT_SECONDS),
    )
    with eo.OnceConsumer(job["config"], [job["topic"]], once) as consumer:
        consumer.run(handler, lanes=LANES, until=eo.END)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
