"""Charge a card once per payment event, although the bank is somewhere else.

The bank is outside our store, so a crash between its answer and our marker leaves a doubt, and the
event runs again. `event.key_for("bank")` is the same on every run: the bank sees one payment.

    KAFKA_BOOTSTRAP=localhost:9092 python examples/payments.py STATE_DIRECTORY
"""

import os
import sqlite3
import sys
from pathlib import Path

import effectonce as eo


class Bank:
    """Stands for an HTTP client of a payment provider that honours idempotency keys."""

    def __init__(self, path: str) -> None:
        self._db = sqlite3.connect(path)
        self._db.execute("CREATE TABLE IF NOT EXISTS charge (key TEXT PRIMARY KEY, cents INT)")

    def charge(self, cents: int, *, idempotency_key: str) -> str:
        with self._db:
            self._db.execute("INSERT OR IGNORE INTO charge VALUES (?, ?)", (idempotency_key, cents))
        return f"receipt-{idempotency_key[:8]}"


def main(state: str) -> None:
    bank = Bank(f"{state}/bank.db")
    once = eo.Once(
        f"rocksdb://{state}/once",
        identify=eo.header("event-id"),
        effects=eo.Outside(on_doubt="repeat"),
        scope="payments",
        retry=eo.Retry(attempts=5),
    )
    print(once.promise())

    def charge(event: eo.Event) -> dict[str, str]:
        payment = event.json()
        receipt = bank.charge(payment["cents"], idempotency_key=event.key_for("bank"))
        return {"receipt": receipt}  # kept as the outcome: `effectonce inspect` shows it

    config = {
        "bootstrap.servers": os.environ["KAFKA_BOOTSTRAP"],
        "group.id": "billing",
        "session.timeout.ms": 6_000,  # how soon the partitions of a killed member move on
    }
    with eo.OnceConsumer(config, ["payments"], once) as consumer:
        consumer.run(charge)  # until SIGTERM


if __name__ == "__main__":
    main(str(Path(sys.argv[1]).resolve()))
