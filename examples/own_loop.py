"""A loop that was there before: confluent-kafka's poll() and commit(), and what takes their place.

    while True:                                    for batch in consumer:
        message = consumer.poll(1.0)                   for event in batch:
        ...                                                with event as tx:
        handle(message)                                        handle(event, tx)
        consumer.commit(message)

Asking for the next batch commits the last one: its markers, its effects and the position together.
Repeats are answered before they come here. An event that was never entered is untouched, and comes
again; one that raised is tried again in place, if you catch what it raised.

    KAFKA_BOOTSTRAP=localhost:9092 python examples/own_loop.py STATE_DIRECTORY
"""

import os
import signal
import sys
from pathlib import Path

import effectonce as eo


def main(state: str) -> None:
    once = eo.Once(f"rocksdb://{state}/once", identify=eo.header("event-id"), effects=eo.InStore())
    config = {
        "bootstrap.servers": os.environ["KAFKA_BOOTSTRAP"],
        "group.id": "ledger",
        "session.timeout.ms": 6_000,  # how soon the partitions of a killed member move on
    }
    with eo.OnceConsumer(config, ["entries"], once) as consumer:
        signal.signal(signal.SIGTERM, lambda number, frame: consumer.stop())
        for batch in consumer:
            for event in batch:
                try:
                    with event as tx:
                        assert isinstance(tx, eo.KeyValueTx)  # for type checkers: effects=InStore()
                        book(event, tx)
                except (KeyError, ValueError) as error:  # uncaught it would end the loop
                    print(f"{event!r}: {error!r}", file=sys.stderr, flush=True)
                    break  # it comes again with the next batch, and what stands behind it too


def book(event: eo.Event, tx: eo.KeyValueTx) -> None:
    entry = event.json()
    account = entry["account"].encode()
    cents = int(tx.get(account) or 0) + entry["cents"]
    tx.put(account, str(cents).encode())
    print(f"{entry['account']}: {cents} cents", flush=True)


if __name__ == "__main__":
    main(str(Path(sys.argv[1]).resolve()))
