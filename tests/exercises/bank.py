"""The other side, for handlers to be right or wrong about."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import effectonce as eo

RECORDS = [("e1", {"cents": 1}), ("e2", {"cents": 2}), ("e3", {"cents": 3})]
AT_ONCE = eo.Retry(attempts=5, wait_initial=timedelta(0), wait_max=timedelta(0))


def outside(store: str = "memory:", **policy: Any) -> eo.Once:
    return eo.Once(
        store, identify=eo.header("event-id"), effects=eo.Outside(on_doubt="repeat"), **policy
    )


def in_store(store: str = "memory:", **policy: Any) -> eo.Once:
    return eo.Once(store, identify=eo.header("event-id"), effects=eo.InStore(), **policy)


class Bank:
    """Charges, and knows idempotency keys."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.charges: list[str] = []
        self.keys: set[str] = set()

    def effects(self) -> list[str]:
        return self.charges

    def has(self, payment: str) -> bool:
        return payment in self.charges

    def charge(self, payment: str, key: str | None = None) -> None:
        if key is not None:
            if key in self.keys:
                return
            self.keys.add(key)
        self.charges.append(payment)


bank = Bank()


# -- right -----------------------------------------------------------------------------------------


def with_a_key(event: eo.Event) -> None:
    bank.charge(event.id, event.key_for("bank"))


def retries_by_itself(event: eo.Event) -> None:
    for _ in range(3):
        try:
            bank.charge(event.id, event.key_for("bank"))
        except OSError:
            continue
        return
    raise TimeoutError


def adds_up(event: eo.Event, tx: eo.KeyValueTx) -> None:
    payment = event.json()
    assert isinstance(payment, dict)
    tx.put(b"sum", b"%d" % (int(tx.get(b"sum") or b"0") + payment["cents"]))


# -- wrong -----------------------------------------------------------------------------------------


def without_a_key(event: eo.Event) -> None:
    bank.charge(event.id)


def makes_a_key_a_run(event: eo.Event) -> None:
    key = str(uuid4())
    try:
        bank.charge(event.id, key)
    except TimeoutError:
        bank.charge(event.id, key)


def asks_first(event: eo.Event) -> None:
    if not bank.has(event.id):
        bank.charge(event.id)


def asks_where_it_may_be_repeated(event: eo.Event) -> None:
    if event.maybe_repeated and bank.has(event.id):
        return
    bank.charge(event.id)


def skips_where_it_may_be_repeated(event: eo.Event) -> None:
    if not event.maybe_repeated:
        bank.charge(event.id, event.key_for("bank"))


def swallows(event: eo.Event) -> None:
    try:
        bank.charge(event.id, event.key_for("bank"))
    except Exception:  # noqa: BLE001 - the mistake
        return


def remembers() -> Callable[[eo.Event], None]:
    seen: set[str] = set()

    def handler(event: eo.Event) -> None:
        if event.id not in seen:
            bank.charge(event.id)
            seen.add(event.id)

    return handler


def remembers_first() -> Callable[[eo.Event], None]:
    seen: set[str] = set()

    def handler(event: eo.Event) -> None:
        if event.id not in seen:
            seen.add(event.id)
            bank.charge(event.id, event.key_for("bank"))

    return handler


def caches() -> Callable[[eo.Event, eo.KeyValueTx], None]:
    sums: dict[bytes, int] = {}

    def handler(event: eo.Event, tx: eo.KeyValueTx) -> None:
        payment = event.json()
        assert isinstance(payment, dict)
        sums.setdefault(b"sum", int(tx.get(b"sum") or b"0"))
        sums[b"sum"] += payment["cents"]
        tx.put(b"sum", b"%d" % sums[b"sum"])

    return handler


def charges_beside_its_tx(event: eo.Event, tx: eo.KeyValueTx) -> None:
    bank.charge(event.id)
    tx.put(event.id.encode(), b"charged")


class Database:
    """A target in SQL, as a handler with one connection uses it."""

    def __init__(self) -> None:
        self._db = sqlite3.connect(":memory:")
        self._db.execute("CREATE TABLE charge (key TEXT PRIMARY KEY, payment TEXT)")
        self._db.commit()

    def reset(self) -> None:
        with self._db:
            self._db.execute("DELETE FROM charge")

    def effects(self) -> list[str]:
        return [row[0] for row in self._db.execute("SELECT payment FROM charge")]

    def by_its_key(self, event: eo.Event) -> None:
        row = (event.key_for("bank"), event.id)
        with self._db:
            self._db.execute("INSERT OR IGNORE INTO charge VALUES (?, ?)", row)

    def close(self) -> None:
        self._db.close()
