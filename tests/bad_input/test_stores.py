"""A store that is damaged, read-only, full or held by another process: nothing lost, and told."""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rocksdict import Options, Rdict

import effectonce as eo
from effectonce.cli import main
from effectonce.hooks import BatchCommitted, PartitionStalled, Retrying, StoreOutage
from effectonce.stores.encoding import POSITION_KEY, packed_key
from effectonce.stores.rocksdb_files import Folder
from effectonce.stores.rocksdb_image import all_rows
from tests.bad_input.kit import Flow, count, once_each, stops

# -- rows that cannot be read ----------------------------------------------------------------------


@contextmanager
def raw(flow: Flow, partition: int = 0) -> Iterator[Rdict]:
    """A partition's database without us; that it opens shows that its LOCK is free."""
    db = Rdict(str(Folder(flow.state, flow.at(partition)).path), Options(raw_mode=True))
    try:
        yield db
    finally:
        db.close()


def flip(db: Rdict, key: bytes) -> bytes:
    """Change one bit of a row; returns the row as it was."""
    value = db[key]
    assert isinstance(value, bytes)
    db[key] = value[:9] + bytes([value[9] ^ 1]) + value[10:]
    return value


def packed_rows(flow: Flow) -> list[bytes]:
    with raw(flow) as db:
        return [key for key, _ in all_rows(db, packed_key(0, 0)[:1])]


def test_a_damaged_marker_row_stops_one_partition_and_its_command_lets_it_go_on(
    flow: Flow, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = flow.send(3) + flow.send(2, partition=1)
    flow.job()
    (key, *_) = packed_rows(flow)
    with raw(flow) as db:
        flip(db, key)
    behind, beside = flow.send(2), flow.send(2, partition=1)
    with pytest.raises(eo.StoreCorrupt) as stopped, flow.consumer() as consumer:
        consumer.run(count, until=eo.END)
    said = str(stopped.value)
    assert f"{flow.topic}[0]: the packed row 0 of generation" in said
    assert "Nothing can be said about the keys of" in said
    assert flow.effects() == once_each(ids + beside)
    with raw(flow):
        pass  # the LOCK is free, whoever holds the error
    _, _, command = said.partition("effectonce quarantine ")
    monkeypatch.setattr(sys, "argv", ["effectonce", "quarantine", *shlex.split(command), "--yes"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "can begin again" in capsys.readouterr().out
    flow.job()
    assert flow.effects() == once_each(ids + behind + beside)


def test_a_damaged_position_stops_one_partition_until_a_copy_is_put_back(flow: Flow) -> None:
    ids = flow.send(3) + flow.send(2, partition=1)
    flow.job()
    with raw(flow) as db:
        copy = flip(db, POSITION_KEY)
    behind, beside = flow.send(2), flow.send(2, partition=1)
    with stops(eo.StoreCorrupt, f"{flow.topic}[0]: the position is damaged", "Put back a copy"):
        flow.job()
    with raw(flow) as db:
        db[POSITION_KEY] = copy
    assert flow.effects() == once_each(ids + beside)
    flow.job()
    assert flow.effects() == once_each(ids + behind + beside)


def test_damage_that_a_handler_meets_is_the_stores_and_not_the_handlers(flow: Flow) -> None:
    ids = flow.send()

    def fill(event: eo.Event, tx: eo.KeyValueTx) -> None:
        count(event, tx)
        for row in range(20_000):
            tx.put(b"filler %06d" % row, os.urandom(100))

    def look(event: eo.Event, tx: eo.KeyValueTx) -> None:
        assert event.partition or len(list(tx.scan(b"filler "))) == 20_000
        count(event, tx)

    flow.job(fill)
    tables = Folder(flow.state, flow.at()).path.glob("*.sst")
    table = max(tables, key=lambda file: file.stat().st_size)
    good = table.read_bytes()
    middle = len(good) // 2
    table.write_bytes(good[:middle] + bytes([good[middle] ^ 0xFF]) + good[middle + 1 :])
    behind, beside = flow.send(2), flow.send(2, partition=1)
    with stops(eo.StoreCorrupt, f"{flow.topic}[0]: ", "checksum mismatch"):
        flow.job(look)
    assert not flow.watch.of(Retrying)
    table.write_bytes(good)
    assert flow.effects() == once_each(ids + beside)
    flow.job(look)
    assert flow.effects() == once_each(ids + behind + beside)


def test_a_store_that_is_down_under_a_handler_costs_its_record_no_attempt(flow: Flow) -> None:
    ids = flow.send(2)
    failures = [eo.StoreUnavailable("the disk reports errors") for _ in range(4)]

    def handler(event: eo.Event, tx: eo.KeyValueTx) -> None:
        count(event, tx)
        if failures:
            raise failures.pop()  # as a `tx` does

    flow.job(handler, retry=eo.Retry(attempts=1))
    assert flow.effects() == once_each(ids)
    assert [outage.over for outage in flow.watch.of(StoreOutage)] == [False, True]


# -- the folder ------------------------------------------------------------------------------------


def test_a_file_where_the_store_should_be_is_named_and_left_alone(flow: Flow) -> None:
    ids = flow.send(2)
    flow.state.write_text("precious")
    with stops(eo.StoreUnavailable, "a file is in the way", str(flow.state), "Nothing is lost"):
        flow.job()
    assert flow.state.read_text() == "precious"
    flow.state.unlink()
    flow.job()
    assert flow.effects() == once_each(ids)


@pytest.mark.parametrize("content", [b"\0" * 52, None], ids=["damaged", "gone"])
def test_a_store_id_that_is_lost_stops_all_and_is_not_drawn_anew(
    flow: Flow, content: bytes | None
) -> None:
    ids = flow.send(2)
    flow.job()
    file = flow.state / "STORE"
    good = file.read_bytes()
    ids += flow.send(2)
    if content is None:
        file.unlink()
        with stops(eo.StartRefused, "written by another store", "Put the whole store back"):
            flow.job()
    else:
        file.write_bytes(content)
        with stops(eo.StoreCorrupt, f"{file} does not hold a store's id", "Put it back"):
            flow.job()
    assert flow.effects() == once_each(ids[:2])
    file.write_bytes(good)
    flow.job()
    assert flow.effects() == once_each(ids)


def test_without_a_backup_of_its_id_a_store_begins_anew_where_kafka_stands(flow: Flow) -> None:
    ran: list[str] = []
    ids = flow.send(2)
    flow.job(lambda event, tx: ran.append(event.id))
    (flow.state / "STORE").write_bytes(b"")
    with stops(eo.StoreCorrupt, "move the folder away", 'moved="accept"', "without markers"):
        flow.job()
    flow.state.rename(flow.state.with_name("away"))
    ids += flow.send(2)
    flow.job(lambda event, tx: ran.append(event.id), moved="accept")
    assert ran == ids


HOLDER = """
import sys
from rocksdict import Options, Rdict
db = Rdict(sys.argv[1], Options(raw_mode=True))
print("held", flush=True)
sys.stdin.read()
db.close()
"""


@contextmanager
def holding(flow: Flow, partition: int = 0) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a partition's LOCK."""
    folder = Folder(flow.state, flow.at(partition))
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        (folder.path / "OWNER").write_text(f"{process.pid} {os.uname().nodename}\n")
        yield process
        process.kill()


def test_a_locked_partition_is_waited_for_and_begins_by_itself(
    flow: Flow, caplog: pytest.LogCaptureFixture
) -> None:
    ids, beside = flow.send(2), flow.send(2, partition=1)
    flow.job()
    ids += flow.send(2)
    beside += flow.send(2, partition=1)

    def fresh() -> int:
        return sum(each.fresh for each in flow.watch.of(BatchCommitted))

    caplog.set_level(logging.WARNING)
    with holding(flow) as holder, flow.member() as member:
        flow.watch.until(lambda: fresh() == 6)
        assert flow.effects() == once_each(ids[:2] + beside)
        flow.watch.until(member.errors)
        (waits,) = member.errors()
        assert f"{flow.topic}[0]: its database" in waits
        assert f"is held by process {holder.pid}" in waits
        assert "nothing is lost" in waits
        holder.kill()
        flow.watch.until(lambda: fresh() == 8)
        assert member.consumer.health().ok
    assert flow.effects() == once_each(ids + beside)
    warned = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert len([line for line in warned if "waiting for its store" in line]) == 1


# -- the disk --------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A small disk of its own, mounted and remounted with the options given."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        again = "remount," if os.path.ismount(folder) else ""
        command = ["mount", "-t", "tmpfs", "-o", again + options, "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"needs the right to mount a tmpfs: {done.stderr.strip()}")
        return folder

    yield mount
    if os.path.ismount(folder):
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_read_only_store_takes_no_event_and_says_so(
    flow: Flow, disk: Callable[[str], Path]
) -> None:
    flow.state = disk("size=64m") / "state"
    ids = flow.send(2) + flow.send(1, partition=1)
    flow.job()
    ids += flow.send(2)
    disk("ro")
    with flow.member() as member:
        flow.watch.until(lambda: len(flow.watch.of(StoreOutage)) == 2)
        for error in member.errors():
            assert "the file system is read-only: mount it writable. Nothing is lost" in error
        disk("rw")
        flow.watch.until(lambda: sum(o.over for o in flow.watch.of(StoreOutage)) == 2)
        flow.watch.until(lambda: sum(b.fresh for b in flow.watch.of(BatchCommitted)) == 5)
    assert flow.effects() == once_each(ids)


def test_a_store_that_cannot_be_made_is_refused_at_once(
    flow: Flow, disk: Callable[[str], Path]
) -> None:
    ids = flow.send(2)
    flow.state = disk("ro") / "state"
    with stops(eo.StoreUnavailable, "the file system is read-only", "Nothing is lost"):
        flow.job()
    disk("rw")
    flow.job()
    assert flow.effects() == once_each(ids)


def fill(folder: Path) -> Path:
    """Write until nothing more fits."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as out:
        try:
            while True:
                out.write(bytes(1 << 16))
        except OSError:
            return ballast


def test_a_disk_that_is_full_at_the_start_is_waited_for(
    flow: Flow, disk: Callable[[str], Path]
) -> None:
    folder = disk("size=16m")
    flow.state = folder / "state"
    ids = flow.send(2)
    flow.job()
    ids += flow.send(2)
    ballast = fill(folder)
    with flow.member() as member:
        flow.watch.until(lambda: flow.watch.of(StoreOutage))
        assert any("the disk is full: make room" in error for error in member.errors())
        ballast.unlink()
        flow.watch.until(lambda: sum(b.fresh for b in flow.watch.of(BatchCommitted)) == 4)
    assert flow.effects() == once_each(ids)


def test_a_disk_that_fills_up_in_mid_run_is_waited_for(
    flow: Flow, disk: Callable[[str], Path]
) -> None:
    folder = disk("size=16m")
    flow.state = folder / "state"
    first = flow.send(2)

    def fresh() -> int:
        return sum(b.fresh for b in flow.watch.of(BatchCommitted))

    def handler(event: eo.Event, tx: eo.KeyValueTx) -> None:
        count(event, tx)
        tx.put(b"filler " + event.id.encode(), os.urandom(200_000))

    with flow.member(handler) as member:
        flow.watch.until(lambda: fresh() == 2)
        ballast = fill(folder)
        more = flow.send(3) + flow.send(1, partition=1)
        flow.watch.until(lambda: flow.watch.of(StoreOutage))
        assert any("the disk is full: make room" in error for error in member.errors())
        assert not flow.watch.of(PartitionStalled)
        ballast.unlink()
        flow.watch.until(lambda: fresh() == 6)
        assert member.consumer.health().ok
    done = flow.effects()
    assert {each: done[each] for each in first + more} == once_each(first + more)


def test_a_full_disk_makes_no_half_store(flow: Flow, disk: Callable[[str], Path]) -> None:
    folder = disk("size=16m")
    flow.state = folder / "state"
    ids = flow.send(2)
    ballast = fill(folder)
    with stops(eo.StoreUnavailable, "the disk is full: make room"):
        flow.job()
    ballast.unlink()
    flow.job()
    assert flow.effects() == once_each(ids)
