"""Another process with the same store, told what to do line by line; run as a script it is one.

`loop` commits until it is killed: row i of the loop marks TEN * i ... and counts itself in a row of
the user's, and is acknowledged by printing its number.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Final

from effectonce.errors import StoreError
from effectonce.model import Applied
from effectonce.stores.rocksdb import RocksDBStore
from effectonce.testing.owner import AT, Owner

TEN: Final = 10
COUNTER: Final = b"commits"


def numbers_of(row: int) -> range:
    return range(TEN * row, TEN * row + TEN)


class Peer:
    """The handle that a test holds."""

    def __init__(self, path: Path, *, sync: bool = False) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", __file__, str(path), str(int(sync))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def ask(self, command: str) -> str:
        self.tell(command)
        return self.line()

    def tell(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> str:
        """SIGKILL; returns what it had still said."""
        self.process.kill()
        assert self.process.stdout is not None
        said = self.process.stdout.read()
        self.process.wait()
        return said

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def say(answer: object) -> None:
    sys.stdout.write(f"{answer}\n")
    sys.stdout.flush()


def loop(store: RocksDBStore) -> None:
    owner = Owner.open(store)
    for row in count(owner.position.next // TEN):
        write = (COUNTER, b"%d" % (row + 1))
        assert owner.commit(numbers_of(row), writes=(write,)) == Applied()
        say(row)


def main(path: str, sync: str) -> None:
    store = RocksDBStore(path, sync=bool(int(sync)))
    owner: Owner | None = None
    for command in sys.stdin:
        try:
            match command.split():
                case ["prepare"]:
                    answer = store.prepare().hex()
                case ["open"]:
                    owner = Owner.open(store)
                    answer = f"epoch {owner.position.epoch} next {owner.position.next}"
                case ["commit", number]:
                    assert owner is not None
                    answer = type(owner.commit([int(number)])).__name__
                case ["release"]:
                    store.release(AT)
                    answer = "released"
                case ["loop"]:
                    loop(store)
                    return
                case _:
                    answer = "?"
        except StoreError as error:
            answer = f"{type(error).__name__}: {error}"
        say(answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
