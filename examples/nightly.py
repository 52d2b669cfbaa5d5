"""A job: take what is in the topic now, write it out in batches, end. Run it again tomorrow.

`until=effectonce.END` ends at the log's end as it was when the job began. A batch handler gets up
to `size` events at a time; if it raises, they are handed over again one by one, so that one bad row
does not hold up the rest.

    KAFKA_BOOTSTRAP=localhost:9092 python examples/nightly.py STATE_DIRECTORY

`eo.field` needs the extra `jmespath`.
"""

import os
import sqlite3
import sys
from pathlib import Path

import effectonce as eo


def main(state: str) -> None:
    reports = sqlite3.connect(f"{state}/reports.db")
    reports.execute("CREATE TABLE IF NOT EXISTS reading (id TEXT PRIMARY KEY, body BLOB)")

    def store(batch: eo.Batch) -> None:
        with reports:  # one transaction a batch
            reports.executemany(
                "INSERT OR REPLACE INTO reading VALUES (?, ?)",
                zip(batch.ids(), batch.values(), strict=True),
            )

    once = eo.Once(
        f"rocksdb://{state}/once",
        identify=eo.field("reading.id"),
        effects=eo.Outside(on_doubt="repeat"),
        scope="nightly",
    )
    config = {
        "bootstrap.servers": os.environ["KAFKA_BOOTSTRAP"],
        "group.id": "nightly",
        "session.timeout.ms": 6_000,  # how soon the partitions of a killed member move on
    }
    with eo.OnceConsumer(config, ["readings"], once) as consumer:
        consumer.run_batches(store, size=1000, until=eo.END)
    (rows,) = reports.execute("SELECT count(*) FROM reading").fetchone()
    print(f"{rows} readings")


if __name__ == "__main__":
    main(str(Path(sys.argv[1]).resolve()))
