"""A process that does nothing but commit, so that files come and go all the time; run as a script.

Row i marks the keys HUNDRED * i and the 99 after it, in the generation of `generation_of`. How many
rows are acknowledged stands in a file that the test maps.
"""

from __future__ import annotations

import mmap
import subprocess
import sys
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Final

from effectonce.model import Applied
from effectonce.stores import rocksdb_options
from effectonce.testing.owner import Owner, next_generation

HUNDRED: Final = 100
ROWS_OF_A_GENERATION: Final = 500
KEPT: Final = 3
WRITE_BUFFER_BYTES: Final = 128 * 1024
"""Full every 45 commits: some 100 logs a second become tables, and go."""


def generation_of(row: int) -> int:
    return 1 + row // ROWS_OF_A_GENERATION


class BusyOwner:
    """The handle that a test holds."""

    def __init__(self, path: Path) -> None:
        count_file = path.parent / "acknowledged"
        count_file.write_bytes(bytes(8))
        self._file = count_file.open("rb")
        self._count = mmap.mmap(self._file.fileno(), 8, access=mmap.ACCESS_READ)
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(path), str(count_file)], stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline()  # it has begun

    @property
    def rows(self) -> int:
        """How many rows are acknowledged."""
        return int.from_bytes(self._count[:], "little")

    def __enter__(self) -> BusyOwner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._count.close()
        self._file.close()


def main(path: Path, count_file: Path) -> None:
    from effectonce.stores.rocksdb import RocksDBStore

    rocksdb_options.WRITE_BUFFER_BYTES = WRITE_BUFFER_BYTES  # type: ignore[misc]
    owner = Owner.open(RocksDBStore(path))
    with count_file.open("r+b") as file, mmap.mmap(file.fileno(), 8) as acknowledged:
        for row in count():
            generation = generation_of(row)
            if generation > owner.position.generations[-1].generation:
                floor = max(1, generation - KEPT + 1)
                owner.position = next_generation(owner.position, generation, floor)
            assert owner.commit(range(HUNDRED * row, HUNDRED * (row + 1))) == Applied()
            acknowledged[:] = (row + 1).to_bytes(8, "little")
            if row == ROWS_OF_A_GENERATION:
                sys.stdout.write("busy\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
