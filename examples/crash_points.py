"""Find out what a crash does to a handler, before one happens: no Kafka, no database, a second.

The first handler looks careful: where an event may be a repeat, it asks the bank first. Yet it
charges twice. The second gives the bank `event.key_for("bank")`, and lets the bank ask itself.

    python examples/crash_points.py
"""

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

    def has(self, payment: str) -> bool:
        return payment in self.charges

    def charge(self, payment: str, *, idempotency_key: str | None = None) -> None:
        if idempotency_key is not None:
            if idempotency_key in self.keys:
                return
            self.keys.add(idempotency_key)
        self.charges.append(payment)


bank = Bank()


def careful(event: eo.Event) -> None:
    if event.maybe_repeated and bank.has(event.id):
        return
    bank.charge(event.id)


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
