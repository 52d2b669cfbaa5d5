"""Find out what a crash does to a handler, before one happens: no Kafka, no database, a second.

The first handler does what payment providers advise: a random idempotency key, and the same one for
each attempt. Yet it charges twice: the key dies with the run that made it. The second takes
`event.key_for("bank")`, which is the same on every run, and leaves further attempts to effectonce.

    python examples/crash_points.py
"""

from uuid import uuid4

import effectonce as eo
from effectonce.testing import exercise


class Bank:
    """A test double of the payment provider: what it charged, and the keys that it has seen."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.charges: list[str] = []
        self.keys: set[str] = set()

    def effects(self) -> list[str]:
        return self.charges

    def charge(self, payment: str, *, idempotency_key: str) -> None:
        if idempotency_key not in self.keys:
            self.keys.add(idempotency_key)
            self.charges.append(payment)


bank = Bank()


def careful(event: eo.Event) -> None:
    key = str(uuid4())
    for attempt in (1, 2, 3):
        try:
            bank.charge(event.id, idempotency_key=key)
            return
        except TimeoutError:
            if attempt == 3:
                raise


def right(event: eo.Event) -> None:
    bank.charge(event.id, idempotency_key=event.key_for("bank"))


once = eo.Once(
    "rocksdb:///var/lib/payments",  # not touched here
    identify=eo.header("event-id"),
    effects=eo.Outside(on_doubt="repeat"),
)
payments = [("p1", {"cents": 500}), ("p2", {"cents": 700}), ("p3", {"cents": 900})]

if __name__ == "__main__":
    print(exercise(careful, payments, once, target=bank).explain())
    print()
    print(exercise(right, payments, once, target=bank).check().explain())
