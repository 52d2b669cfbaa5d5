"""The witness journals and strikes before it answers, and lets nothing outlive it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from effectonce.testing.chaos.journal import SIZE, Kind, Record, Tail, now, unpack
from effectonce.testing.chaos.witness import ANY_WORKER, WitnessProcess, child_environment

# Makes effects until it is killed, and says on stdout how many were answered.
WORKER = """
import itertools, os, sys
from effectonce.testing.chaos.target import Target
target = Target(sys.argv[1], int(sys.argv[2]))
for n in itertools.count():
    target.effect(0, n, bytes(16))
    os.write(1, b".")
"""

# Starts a witness and a worker, freezes the worker, says so, and waits to be killed.
RUN = f"""
import pathlib, signal, subprocess, sys
from effectonce.testing.chaos.witness import WitnessProcess
from effectonce.testing.chaos.journal import Kind, unpack
witness = WitnessProcess(pathlib.Path(sys.argv[1]))
witness.arm(signal.SIGSTOP, 1, 5, 0.0)
subprocess.Popen([sys.executable, "-c", {WORKER!r}, str(witness.socket_path), "1"])
while not any(r.kind == Kind.FROZEN for r in unpack(witness.journal_path.read_bytes())):
    pass
print("frozen", flush=True)
signal.pause()
"""


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[WitnessProcess]:
    process = WitnessProcess(tmp_path)
    yield process
    process.close()


@pytest.fixture
def worker(witness: WitnessProcess) -> Iterator[Callable[[int], subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(number: int) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(witness.socket_path), str(number)],
            stdout=subprocess.PIPE,
            env=child_environment(),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def kinds(witness: WitnessProcess, kind: Kind) -> list[Record]:
    return [r for r in unpack(witness.journal_path.read_bytes()) if r.kind == kind]


def struck(witness: WitnessProcess, kind: Kind) -> list[Record]:
    """The same, once there is one: a signal arrives a moment before it is journalled."""
    deadline = time.monotonic() + 10
    while not (records := kinds(witness, kind)):
        assert time.monotonic() < deadline, "never journalled"
        time.sleep(0.005)
    return records


def test_a_kill_falls_after_the_effect_is_journalled_and_before_it_is_answered(
    witness: WitnessProcess, worker: Callable[[int], subprocess.Popen[bytes]]
) -> None:
    witness.arm(signal.SIGKILL, 7, 3, 0.0)
    process = worker(7)
    answered, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert answered == b".."
    (killed,) = struck(witness, Kind.KILLED)
    effects = kinds(witness, Kind.EFFECT)
    assert [effect.offset for effect in effects] == [0, 1, 2]
    assert effects[-1].time_ns < killed.time_ns
    assert killed.worker == 7


def test_a_delayed_kill_comes_no_earlier(
    witness: WitnessProcess, worker: Callable[[int], subprocess.Popen[bytes]]
) -> None:
    witness.arm(signal.SIGKILL, ANY_WORKER, 1, 0.1)
    worker(7).communicate()
    (killed,) = struck(witness, Kind.KILLED)
    assert killed.time_ns - kinds(witness, Kind.EFFECT)[0].time_ns >= 100_000_000


def test_only_the_worker_that_was_named_is_struck(
    witness: WitnessProcess, worker: Callable[[int], subprocess.Popen[bytes]]
) -> None:
    witness.arm(signal.SIGKILL, 2, 50, 0.0)
    other, victim = worker(1), worker(2)
    victim.communicate()
    assert other.poll() is None
    assert [record.worker for record in struck(witness, Kind.KILLED)] == [2]


def test_when_the_run_closes_the_witness_even_a_frozen_worker_ends(
    witness: WitnessProcess, worker: Callable[[int], subprocess.Popen[bytes]]
) -> None:
    witness.arm(signal.SIGSTOP, 1, 1, 0.0)
    process = worker(1)
    os.waitpid(process.pid, os.WUNTRACED)
    assert struck(witness, Kind.FROZEN)
    witness.close()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_nothing_outlives_a_run_that_is_killed(tmp_path: Path) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, str(tmp_path)], stdout=subprocess.PIPE, env=child_environment()
    )
    assert run.stdout is not None
    while not run.stdout.readline().endswith(b"frozen\n"):
        pass
    run.kill()
    rest = threading.Thread(target=run.stdout.read)  # ends when the worker's copy is closed too
    rest.start()
    rest.join(20)
    assert not rest.is_alive()
    run.communicate()


def test_a_torn_record_is_no_record(tmp_path: Path) -> None:
    whole = now(Kind.STARTED, 1)
    assert [r.worker for r in unpack(whole + whole[:-1])] == [1]
    path = tmp_path / "journal"
    path.write_bytes(whole + whole[: SIZE // 2])
    tail = Tail(path)
    assert len(list(tail.read())) == 1
    with path.open("ab") as journal:
        journal.write(whole[SIZE // 2 :])
    assert len(list(tail.read())) == 1
    tail.close()
