"""`effectonce inspect` tells what is there, and says "not found" only where that is proven."""

from __future__ import annotations

import io
import os
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from effectonce.identity.keys import composite_keys, keys_of, parts
from effectonce.stores.rocksdb import RocksDBStore
from effectonce.stores.rocksdb_files import Folder
from effectonce.testing.owner import AT, OTHER
from tests.cli.shell import Shell, damage, ids, mark
from tests.stores.peer import Peer

UUID = "0b8f3c52-6f0e-4c1b-9d7a-2f4f2f1d9a10"
TEXT = "invoice-4711"
SECRET = bytes(range(32))


# -- positions --


def test_positions_are_told_to_programs_in_full(store: RocksDBStore, effectonce: Shell) -> None:
    mark(store, ids(TEXT), time_ms=1_700_000_000_000)
    mark(store, ids(UUID), at=OTHER)
    said = effectonce("inspect", "--json")
    assert said.code == 0
    first, second = said.json["partitions"]
    assert (first["scope"], first["group"], first["topic"]) == ("payments", "billing", "orders")
    assert (first["number"], second["number"]) == (0, 1)
    assert (first["markers"], first["whole"], first["problems"]) == (1, True, [])
    assert first["generations"] == [
        {"generation": 1, "offset": 0, "log_time_ms": 1_000, "markers": 1}
    ]
    position = first["position"]
    assert (position["next"], position["epoch"], position["horizon"]) == (1, 1, 0)
    assert position["log_time_ms"] == 1_700_000_000_000
    assert position["topic_id"] == "AAECAwQFBgcICQoLDA0ODw"  # as kafka-topics prints it
    assert position["store_id"] == store.prepare().hex()
    assert "event" not in said.json


def test_positions_are_told_to_people(store: RocksDBStore, effectonce: Shell) -> None:
    mark(store, ids(TEXT), time_ms=1_700_000_000_000)
    said = effectonce("inspect")
    assert said.code == 0
    assert "topic id AAECAwQFBgcICQoLDA0ODw" in said.out
    assert "2023-11-14 22:13:20.000Z" in said.out
    assert f"this very process (pid {os.getpid()})" in said.out


def test_only_what_is_asked_for_is_shown(store: RocksDBStore, effectonce: Shell) -> None:
    refunds = replace(AT, topic="refunds", group="audit")
    for at in (AT, OTHER, refunds):
        mark(store, ids(TEXT), at=at)

    def shown(*options: str) -> list[tuple[str, int]]:
        found = effectonce("inspect", "--json", *options).json["partitions"]
        return [(each["topic"], each["number"]) for each in found]

    assert shown() == [("refunds", 0), ("orders", 0), ("orders", 1)]
    assert shown("--topic", "orders") == [("orders", 0), ("orders", 1)]
    assert shown("--partition", "0") == [("refunds", 0), ("orders", 0)]
    assert shown("--group", "audit") == [("refunds", 0)]
    assert shown("--scope", "payments", "--partition", "1") == [("orders", 1)]


def test_names_that_look_like_markup_are_shown_as_they_are(
    store: RocksDBStore, effectonce: Shell
) -> None:
    mark(store, ids(TEXT), at=replace(AT, topic="[red]:smile:[/red]"))
    assert "[red]:smile:[/red]" in effectonce("inspect").out


def test_a_running_owner_is_named_and_does_not_hinder(
    store: RocksDBStore, effectonce: Shell, tmp_path: Path
) -> None:
    with Peer(tmp_path / "state") as peer:
        peer.ask("open")
        assert peer.ask("commit 7") == "Applied"
        (partition,) = effectonce("inspect", "--json").json["partitions"]
        assert partition["holder"].startswith(f"process {peer.pid} on host ")
        assert partition["position"]["next"] == 1
        assert peer.ask("commit 8") == "Applied"


def test_what_cannot_be_read_is_told_and_the_exit_code_says_so(
    store: RocksDBStore, effectonce: Shell
) -> None:
    mark(store, ids(TEXT))
    mark(store, ids(TEXT), at=OTHER)
    damage(store)
    said = effectonce("inspect")
    assert said.code == 2
    assert "orders[0]: the packed row 0 of generation 1 is damaged" in said.out
    assert effectonce("inspect", "--partition", "1").code == 0


def test_a_partition_whose_files_are_damaged_hides_neither_itself_nor_the_others(
    store: RocksDBStore, effectonce: Shell
) -> None:
    mark(store, ids(TEXT))
    mark(store, ids(TEXT), at=OTHER)
    store.close()
    (Folder(store.path, AT).path / "CURRENT").write_text("nonsense\n")
    said = effectonce("inspect", "--json")
    assert said.code == 2
    first, second = said.json["partitions"]
    assert (first["position"], first["whole"]) == (None, False)
    assert first["problems"]
    assert second["whole"]


# -- one event --


@pytest.mark.parametrize("event_id", [UUID, TEXT, UUID.upper(), "ünïcode/ö"])
def test_an_event_that_took_effect_is_found_by_its_id(
    store: RocksDBStore, effectonce: Shell, event_id: str
) -> None:
    mark(store, ids("another"), at=OTHER)
    mark(store, ids("an earlier one"))
    mark(store, ids(event_id), {"charged": True}, time_ms=1_700_000_000_000)
    said = effectonce("inspect", "--json", "--id", event_id)
    assert said.code == 0
    assert said.json["event"]["answer"] == "found"
    (effect,) = said.json["event"]["effects"]
    assert effect["partition"]["number"] == 0
    assert (effect["offset"], effect["epoch"], effect["run"]) == (1, 2, 0)
    assert effect["log_time_ms"] == 1_700_000_000_000
    assert effect["wall_ms"] == 1_700_000_000_005
    assert effect["outcome"] == {"charged": True}
    assert len(effect["fingerprint"]) == 8


def test_an_event_is_told_to_people_with_when_where_and_what_it_returned(
    store: RocksDBStore, effectonce: Shell
) -> None:
    mark(store, ids(TEXT), {"charged": True}, time_ms=1_700_000_000_000)
    said = effectonce("inspect", "--id", TEXT)
    assert said.code == 0
    assert "FOUND: took effect in orders[0] at offset 0" in said.out
    assert "2023-11-14 22:13:20.005Z, in epoch 1" in said.out
    assert "{'charged': True}" in said.out


@pytest.mark.parametrize(
    "outcome",
    [
        None,
        b"\xff",
        {1: {"at": datetime(2026, 1, 1, tzinfo=UTC)}},
        {b"k": 1},
        object(),
        "x" * 70_000,
    ],
)
def test_any_outcome_can_be_told(store: RocksDBStore, effectonce: Shell, outcome: object) -> None:
    mark(store, ids(TEXT), outcome)
    assert effectonce("inspect", "--json", "--id", TEXT).code == 0
    assert effectonce("inspect", "--id", TEXT).code == 0


def test_an_event_in_two_partitions_is_shown_in_both(
    store: RocksDBStore, effectonce: Shell
) -> None:
    mark(store, ids(TEXT))
    mark(store, ids(TEXT), at=OTHER)
    effects = effectonce("inspect", "--json", "--id", TEXT).json["event"]["effects"]
    assert [effect["partition"]["number"] for effect in effects] == [0, 1]


def test_an_id_hashed_with_a_secret_is_found_with_that_secret_alone(
    store: RocksDBStore, effectonce: Shell, tmp_path: Path
) -> None:
    mark(store, ids(UUID, secret=SECRET))
    file, other = tmp_path / "secret", tmp_path / "other"
    file.write_bytes(SECRET)
    other.write_bytes(SECRET[::-1])
    assert effectonce("inspect", "--id", UUID, "--secret-file", str(file)).code == 0
    assert effectonce("inspect", "--id", UUID, "--secret-file", str(other)).code == 1
    assert effectonce("inspect", "--id", UUID).code == 1


def test_an_id_of_several_parts_is_found_by_its_parts_in_order(
    store: RocksDBStore, effectonce: Shell
) -> None:
    mark(store, composite_keys([parts([b"/shop", b"17"])], None))
    assert effectonce("inspect", "--id", "/shop", "--id", "17").code == 0
    assert effectonce("inspect", "--id", "17", "--id", "/shop").code == 1


def test_an_id_without_a_text_is_found_by_its_key(store: RocksDBStore, effectonce: Shell) -> None:
    keys = composite_keys([parts([b"/shop", b"17"])], None)
    mark(store, keys)
    assert effectonce("inspect", "--key", keys.tobytes().hex()).code == 0
    assert effectonce("inspect", "--key", "0" * 32).code == 1
    assert effectonce("inspect", "--key", "0" * 31).code == 2


def test_an_id_from_standard_input_stays_out_of_the_shells_history(
    store: RocksDBStore, effectonce: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark(store, ids(TEXT))
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{TEXT}\n"))
    assert effectonce("inspect", "--id", "-").code == 0


@pytest.mark.parametrize("options", [("--json",), ()])
def test_neither_an_id_nor_its_key_is_ever_printed(
    store: RocksDBStore, effectonce: Shell, options: tuple[str, ...]
) -> None:
    mark(store, ids(UUID), {"charged": True})
    for event_id in (UUID, "x" * 1025, TEXT):
        said = effectonce("inspect", *options, "--id", event_id)
        told = (said.out + said.err).replace("-", "")
        assert event_id.replace("-", "") not in told
        assert keys_of([event_id.encode()], None).tobytes().hex() not in told


def test_an_event_without_a_marker_is_not_found(store: RocksDBStore, effectonce: Shell) -> None:
    mark(store, ids(TEXT))
    said = effectonce("inspect", "--id", UUID)
    assert said.code == 1
    assert "NOT FOUND" in said.out
    assert effectonce("inspect", "--json", "--id", UUID).json["event"] == {
        "answer": "not found",
        "effects": [],
    }


def test_an_event_that_may_be_in_an_unreadable_row_is_unknown_and_never_not_found(
    store: RocksDBStore, effectonce: Shell
) -> None:
    mark(store, ids(TEXT))
    mark(store, ids(UUID))
    damage(store)
    said = effectonce("inspect", "--id", TEXT)
    assert said.code == 2
    assert "NOT FOUND" not in said.out
    assert effectonce("inspect", "--json", "--id", TEXT).json["event"]["answer"] == "unknown"
    assert effectonce("inspect", "--id", UUID).code == 0  # found is found


# -- what the user can mend --


@pytest.mark.parametrize(
    ("options", "url", "says"),
    [
        ((), "memory:", "reads rocksdb: stores, not memory"),
        ((), "rocksdb:///nowhere/at/all", "there is no store at /nowhere/at/all"),
        ((), "/var/lib/app", "it has no scheme"),
        (("--topic", "nonesuch"), None, "none of them is meant"),
        (("--id", ""), None, "1 to 1024 bytes"),
        (("--id", "a", "--key", "b"), None, "two ways"),
        (("--id", "a", "--secret-file", "/nowhere"), None, "the secret cannot be read"),
    ],
)
def test_a_mistake_is_told_in_one_line_and_without_a_traceback(
    store: RocksDBStore,
    effectonce: Shell,
    options: tuple[str, ...],
    url: str | None,
    says: str,
) -> None:
    mark(store, ids(TEXT))
    said = effectonce("inspect", *options, **({"url": url} if url else {}))
    assert said.code == 2
    assert said.err.startswith("effectonce: ")
    assert says in said.err
    assert not said.out


def test_a_secret_that_once_would_refuse_is_refused_here(
    store: RocksDBStore, effectonce: Shell, tmp_path: Path
) -> None:
    mark(store, ids(TEXT))
    (tmp_path / "secret").write_bytes(b"0123456789abcde")
    said = effectonce("inspect", "--id", TEXT, "--secret-file", str(tmp_path / "secret"))
    assert said.code == 2
    assert "16 to 64" in said.err


def test_looking_for_a_store_does_not_make_one(effectonce: Shell, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert effectonce("inspect", url=f"rocksdb://{tmp_path}/typo").code == 2
    assert sorted(tmp_path.rglob("*")) == before
