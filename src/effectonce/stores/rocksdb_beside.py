"""A database read beside its owner, who goes on writing: one moment of it, whole or not at all.

RocksDB's read-only open reads the list of tables first and then whatever logs are there. When the
owner turns a log into a table in between, its rows are in neither, and nobody is told: a third of
the opens beside a writer that does nothing else had such a hole. So the names are fixed first, as
links in a folder of our own. What has gone by the time it is read is then an error, and the open is
tried again: beside that writer 443 opens had no hole, and 265 failed.

It also leaves the owner's folder alone, which may be read-only: rocksdict writes a file of its own
into whatever it opens. No LOCK is taken.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, TypeVar

from rocksdict import AccessType, Rdict

from effectonce.errors import StoreCorrupt, StoreError, StoreUnavailable
from effectonce.stores.rocksdb_files import Folder, damaged, failure
from effectonce.stores.rocksdb_options import Shared

OPENS: Final = 20
"""At most. Beside the writer above, 20 failures in a row are two in a thousand million."""

_DATA: Final = ("CURRENT", "MANIFEST-*", "*.sst", "*.log")

# struct flock, its members' order and the places of l_type and l_pid
_FLOCK, _TYPE, _PID = ("qqihh", 3, 2) if sys.platform == "darwin" else ("hhqqi0q", 0, 4)

T = TypeVar("T")


def read_beside_owner(folder: Folder, shared: Shared, read: Callable[[Rdict], T]) -> T:
    """What `read` makes of the database; it may be called several times.

    Raises StoreUnavailable, or StoreCorrupt if RocksDB itself cannot read its files.
    """
    problem: Exception | None = None
    for _ in range(OPENS):
        try:
            return _attempt(folder.path, shared, read)
        except StoreCorrupt as error:
            raise damaged(str(error), folder.at, folder.path) from error
        except Exception as error:  # noqa: BLE001  rocksdict knows no better type
            problem = error
    assert problem is not None
    raise _explained(problem, folder) from problem


def _attempt(path: Path, shared: Shared, read: Callable[[Rdict], T]) -> T:
    with TemporaryDirectory(prefix="effectonce-") as links:
        for pattern in _DATA:
            for file in path.glob(pattern):
                (Path(links) / file.name).symlink_to(file)
        options = shared.options()
        options.set_max_open_files(-1)  # opens every table at once: then none can go any more
        access = AccessType.read_only(error_if_log_file_exist=False)
        db = Rdict(links, options, access_type=access)
        try:
            return read(db)
        finally:
            db.close()


def _explained(error: Exception, folder: Folder) -> StoreError:
    if "No such file or directory" in str(error) and holder(folder) is not None:
        return StoreUnavailable(
            f"{folder.at}: its owner kept changing the files of {folder.path} in each of {OPENS} "
            "attempts to read beside it: try again"
        )
    return failure(error, folder.at, folder.path)


def holder(folder: Folder) -> str | None:
    """Who holds the LOCK, without taking it for a moment; None where it is free.

    The kernel knows, and OWNER adds the host. But of our own LOCK the kernel tells us nothing, and
    drops it when we close any handle of that file: then OWNER must do.
    """
    try:
        signed = (folder.path / "OWNER").read_text().split()
    except OSError:
        signed = []
    if signed == [str(os.getpid()), socket.gethostname()]:
        return folder.owner()
    asked = [0] * 5
    asked[_TYPE] = fcntl.F_WRLCK
    try:
        with (folder.path / "LOCK").open("rb") as lock:
            answer = fcntl.fcntl(lock, fcntl.F_GETLK, struct.pack(_FLOCK, *asked))
    except OSError:
        return None
    told = struct.unpack(_FLOCK, answer)
    if told[_TYPE] == fcntl.F_UNLCK:
        return None
    pid = str(told[_PID])
    return folder.owner() if signed[:1] == [pid] or pid == "0" else f"process {pid}"
