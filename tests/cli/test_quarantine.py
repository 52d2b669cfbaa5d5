"""`effectonce quarantine` looks first, does what it said, and says what may run again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from effectonce.stores.rocksdb import RocksDBStore
from effectonce.testing.owner import AT, TOPIC_ID, Owner
from tests.cli.shell import Shell, damage, ids, mark
from tests.stores.peer import Peer

WHERE = ("--topic", "orders", "--partition", "0")


def test_without_yes_it_only_looks(store: RocksDBStore, effectonce: Shell) -> None:
    mark(store, ids("a"))
    damage(store)
    said = effectonce("quarantine", *WHERE)
    assert said.code == 1
    assert "To be set aside: 1 × packed row" in said.out
    assert "the packed row 0 of generation 1 is damaged" in said.out
    assert "may run again if they are delivered again: at most 1" in said.out
    assert "Horizon: 0 -> 1" in said.out
    assert "Nothing was changed" in said.out
    assert effectonce("inspect").code == 2


def test_with_yes_the_partition_goes_on_and_the_rest_of_its_events_are_still_known(
    store: RocksDBStore, effectonce: Shell
) -> None:
    mark(store, ids("a"))
    mark(store, ids("b"))
    damage(store)
    assert effectonce("inspect", "--id", "a").code == 2
    said = effectonce("quarantine", *WHERE, "--yes")
    assert said.code == 0
    assert "orders[0] can begin again" in said.out
    assert effectonce("inspect", "--id", "a").code == 1
    assert effectonce("inspect", "--id", "b").code == 0
    assert "1 rows were set aside" in effectonce("inspect").out
    assert Owner.open(store).position.horizon == 2


def test_where_all_can_be_read_there_is_nothing_to_do(
    store: RocksDBStore, effectonce: Shell
) -> None:
    mark(store, ids("a"))
    store.close()
    said = effectonce("quarantine", *WHERE, "--yes")
    assert said.code == 0
    assert "nothing to set aside" in said.out


def test_an_owner_is_not_worked_behind(
    store: RocksDBStore, effectonce: Shell, tmp_path: Path
) -> None:
    with Peer(tmp_path / "state") as peer:
        peer.ask("open")
        said = effectonce("quarantine", *WHERE, "--yes")
        assert said.code == 2
        assert f"process {peer.pid}" in said.err


def test_the_partition_that_is_meant_must_be_plain(store: RocksDBStore, effectonce: Shell) -> None:
    another = replace(AT, group="audit")
    for at in (AT, another):
        mark(store, ids("a"), at=at)
        damage(store, at)
    said = effectonce("quarantine", *WHERE, "--yes")
    assert said.code == 2
    assert "--scope payments --group audit" in said.err
    assert effectonce("quarantine", *WHERE, "--group", "audit", "--yes").code == 0
    assert effectonce("inspect", "--group", "audit").code == 0
    assert effectonce("inspect", "--group", "billing").code == 2


def test_the_command_that_a_stopped_partition_names_is_the_one_that_helps(
    store: RocksDBStore, effectonce: Shell
) -> None:
    mark(store, ids("a"))
    damage(store)
    with pytest.raises(Exception, match="effectonce quarantine") as told:
        store.open(AT, TOPIC_ID)
    _, _, command = str(told.value).rpartition("effectonce quarantine ")
    url, *options = command.split()
    assert effectonce("quarantine", *options, "--yes", url=url).code == 0
    assert store.open(AT, TOPIC_ID).row is not None


def test_where_it_does_not_help_that_is_told(store: RocksDBStore, effectonce: Shell) -> None:
    mark(store, ids("a"))
    store.close()
    (store.path / "payments/billing/orders/0/CURRENT").write_text("nonsense\n")
    said = effectonce("quarantine", *WHERE, "--yes")
    assert said.code == 2
    assert said.err.startswith("effectonce: orders[0]: ")
