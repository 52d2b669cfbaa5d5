"""The key-value `tx`: an event sees what will be committed, and leaves nothing when it fails."""

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effectonce.errors import TransactionClosed
from effectonce.stores import overlay
from effectonce.stores.overlay import (
    MAX_KEY_BYTES,
    MAX_VALUE_BYTES,
    KeyValueTransaction,
    Overlay,
    Row,
)


class Stored:
    """Committed rows in a dict."""

    def __init__(self, rows: dict[bytes, bytes]) -> None:
        self.rows = rows

    def get(self, key: bytes) -> bytes | None:
        return self.rows.get(key)

    def scan(self, prefix: bytes) -> Iterator[Row]:
        return iter(sorted(row for row in self.rows.items() if row[0].startswith(prefix)))


def begun(rows: dict[bytes, bytes] | None = None) -> tuple[KeyValueTransaction, Overlay]:
    transaction = KeyValueTransaction(Stored(rows or {}))
    return transaction, transaction.begin()


def test_an_event_sees_its_own_writes_and_deletes() -> None:
    _, tx = begun({b"a": b"1", b"b": b"2"})
    tx.put(b"a", b"new")
    tx.delete(b"b")
    tx.put(b"c", b"")
    assert [tx.get(key) for key in (b"a", b"b", b"c", b"d")] == [b"new", None, b"", None]
    assert list(tx.scan()) == [(b"a", b"new"), (b"c", b"")]


def test_a_later_event_sees_what_was_kept_and_not_what_was_discarded() -> None:
    transaction, first = begun({b"n": b"0"})
    first.put(b"n", b"1")
    transaction.keep(first)
    failed = transaction.begin()
    failed.put(b"n", b"99")
    failed.delete(b"m")
    transaction.discard(failed)
    last = transaction.begin()
    assert last.get(b"n") == b"1"
    last.put(b"m", b"2")
    transaction.keep(last)
    assert transaction.writes() == ((b"n", b"1"), (b"m", b"2"))


def test_what_is_not_kept_is_not_written() -> None:
    transaction, tx = begun()
    tx.put(b"a", b"1")
    assert transaction.writes() == ()


def test_a_kept_delete_hides_the_stored_row_from_later_events() -> None:
    transaction, tx = begun({b"a": b"1"})
    tx.delete(b"a")
    transaction.keep(tx)
    later = transaction.begin()
    assert later.get(b"a") is None
    assert list(later.scan(b"a")) == []
    assert transaction.writes() == ((b"a", None),)


def test_a_scan_may_change_what_it_scans() -> None:
    _, tx = begun({b"%d" % i: b"" for i in range(9)})
    for key, _ in tx.scan():
        tx.delete(key)
        tx.put(b"9" + key, b"")
    assert [key for key, _ in tx.scan()] == [b"9%d" % i for i in range(9)]


keys = st.binary(max_size=3)
rows = st.dictionaries(keys, st.binary(max_size=2))
changes = st.dictionaries(keys, st.none() | st.binary(max_size=2))


def test_a_scan_that_is_broken_off_does_not_make_the_next_one_show_rows_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    transaction, first = begun()
    for key in (b"c", b"a", b"b"):
        first.put(key, b"1")
    transaction.keep(first)
    tx = transaction.begin()

    def timed_out(keys: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(overlay, "sorted", timed_out, raising=False)
    with pytest.raises(TimeoutError):
        list(tx.scan())
    monkeypatch.delattr(overlay, "sorted")
    tx.put(b"b", b"2")
    assert list(tx.scan()) == [(b"a", b"1"), (b"b", b"2"), (b"c", b"1")]


@given(rows, changes, changes, keys)
def test_a_scan_shows_what_a_merge_of_the_layers_holds(
    stored: dict[bytes, bytes],
    kept: dict[bytes, bytes | None],
    own: dict[bytes, bytes | None],
    prefix: bytes,
) -> None:
    transaction, tx = begun(stored)
    for layer in (kept, own):
        for key, value in layer.items():
            if value is None:
                tx.delete(key)
            else:
                tx.put(key, value)
        if layer is kept:
            transaction.keep(tx)
            tx = transaction.begin()
    merged = {**stored, **kept, **own}
    expected = {k: v for k, v in merged.items() if v is not None and k.startswith(prefix)}
    assert list(tx.scan(prefix)) == sorted(expected.items())
    assert {key: tx.get(key) for key in expected} == expected


CALLS: dict[str, Callable[[Overlay], object]] = {
    "get": lambda tx: tx.get(b"a"),
    "put": lambda tx: tx.put(b"a", b"1"),
    "delete": lambda tx: tx.delete(b"a"),
    "scan": lambda tx: tx.scan(),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("end", ["keep", "discard", "kill"])
def test_a_dead_tx_takes_no_call(end: str, name: str) -> None:
    transaction, tx = begun({b"a": b"1"})
    call = CALLS[name]
    call(tx)
    if end == "kill":
        transaction.kill()
    else:
        getattr(transaction, end)(tx)
    with pytest.raises(TransactionClosed):
        call(tx)


@pytest.mark.parametrize("end", ["keep", "discard", "kill"])
def test_a_scan_ends_with_its_event(end: str) -> None:
    transaction, tx = begun({b"a": b"1", b"b": b"2"})
    scan = tx.scan()
    assert next(scan) == (b"a", b"1")
    if end == "kill":
        transaction.kill()
    else:
        getattr(transaction, end)(tx)
    with pytest.raises(TransactionClosed):
        next(scan)


def test_a_killed_batch_keeps_and_begins_nothing() -> None:
    transaction, tx = begun()
    tx.put(b"a", b"1")
    transaction.kill()
    with pytest.raises(TransactionClosed):
        transaction.keep(tx)
    with pytest.raises(TransactionClosed):
        transaction.begin()
    assert transaction.writes() == ()


def test_only_an_open_tx_of_this_batch_is_kept() -> None:
    transaction, tx = begun()
    _, foreign = begun()
    foreign.put(b"a", b"1")
    transaction.discard(foreign)
    foreign.put(b"a", b"2")  # still its own batch's
    transaction.keep(tx)
    for wrong in (foreign, tx, object()):
        with pytest.raises(TransactionClosed):
            transaction.keep(wrong)
    transaction.discard(tx)
    transaction.discard(object())
    assert transaction.writes() == ()


@pytest.mark.parametrize("wrong", ["text", bytearray(b"x"), memoryview(b"x"), 1, None], ids=type)
def test_only_bytes_are_taken(wrong: object) -> None:
    _, tx = begun()
    calls: list[Callable[[], object]] = [
        lambda: tx.get(wrong),  # type: ignore[arg-type]
        lambda: tx.put(wrong, b""),  # type: ignore[arg-type]
        lambda: tx.put(b"", wrong),  # type: ignore[arg-type]
        lambda: tx.delete(wrong),  # type: ignore[arg-type]
        lambda: tx.scan(wrong),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(TypeError, match=type(wrong).__name__):
            call()


def test_what_is_too_long_is_refused_when_it_is_written() -> None:
    transaction, tx = begun()
    tx.put(bytes(MAX_KEY_BYTES), bytes(MAX_VALUE_BYTES))
    with pytest.raises(ValueError, match=str(MAX_KEY_BYTES)):
        tx.put(bytes(MAX_KEY_BYTES + 1), b"")
    with pytest.raises(ValueError, match=str(MAX_VALUE_BYTES)):
        tx.put(b"", bytes(MAX_VALUE_BYTES + 1))
    transaction.keep(tx)
    assert len(transaction.writes()) == 1
