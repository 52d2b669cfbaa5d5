"""Rebuild account balances from events: a projection that repeats and crashes cannot bend.

The balances live in the same RocksDB as the markers (`InStore`), so a balance and the note that its
event took effect commit together. "Read the balance, add, write it back" is safe although it is not
idempotent. Events are keyed by account: an account's state is where its events are.

    KAFKA_BOOTSTRAP=localhost:9092 python examples/balances.py STATE_DIRECTORY
"""

import os
import sys
from pathlib import Path

import effectonce as eo


def apply(event: eo.Event, tx: eo.KeyValueTx) -> dict[str, int]:
    entry = event.json()
    account = f"balance/{entry['account']}".encode()
    balance = int(tx.get(account) or b"0") + entry["cents"]
    tx.put(account, b"%d" % balance)
    print(f"{entry['account']} {balance}", flush=True)
    return {"balance": balance}


def main(state: str) -> None:
    once = eo.Once(
        f"rocksdb://{state}/once",
        identify=eo.cloudevent() | eo.header("event-id"),
        effects=eo.InStore(),
        scope="balances",
    )
    config = {
        "bootstrap.servers": os.environ["KAFKA_BOOTSTRAP"],
        "group.id": "balances-example",
        "session.timeout.ms": 6_000,  # how soon the partitions of a killed member move on
    }
    with eo.OnceConsumer(config, ["entries"], once) as consumer:
        consumer.run(apply)  # until SIGTERM


if __name__ == "__main__":
    main(str(Path(sys.argv[1]).resolve()))
