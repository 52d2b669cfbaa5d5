"""The folders and small files around the databases, and what goes wrong with files, in words.

    root/STORE                                        the store's random id, for ever
    root/<scope>/<group>/<topic>/<partition>/         one RocksDB
    root/<scope>/<group>/<topic>/<partition>/OWNER    who holds its LOCK: for people, proves nothing

Names are percent-encoded, so that any scope and group is one folder, and its own.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from effectonce.errors import (
    ConfigError,
    StoreCorrupt,
    StoreError,
    StoreLocked,
    StoreUnavailable,
)
from effectonce.model import Partition

MAX_NAME_BYTES: Final = 255
"""The longest file name that ext4, XFS, APFS and NTFS take."""

_STORE_FILE: Final = re.compile(r"effectonce store 1\n([0-9a-f]{32})\n")

_ADVICE: Final = (
    ("No space left", "the disk is full: make room, and a running consumer goes on"),
    ("quota exceeded", "the disk quota is used up: raise it, and a running consumer goes on"),
    ("File too large", "a file reached its size limit: raise it (ulimit -f)"),
    ("Read-only file system", "the file system is read-only: mount it writable"),
    ("Permission denied", "permission denied: give this user the folder, with all in it"),
    ("Operation not permitted", "not permitted: give this user the folder, with all in it"),
    ("Too many open files", "too many open files: raise the limit (ulimit -n)"),
    ("Not a directory", "a file is in the way: the store's path must be a folder"),
    ("File exists", "a file is in the way: the store's path must be a folder"),
    ("Input/output error", "the disk reports errors: check it before going on"),
)


# -- folders ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Folder:
    """Where one partition's database lies."""

    root: Path
    at: Partition

    @property
    def path(self) -> Path:
        return topic_folder(self.root, self.at.scope, self.at.group, self.at.topic) / str(
            self.at.number
        )

    def make(self) -> None:
        """Create it, and see that it is still there after a power cut."""
        if (self.path / "CURRENT").exists():
            return
        self.path.mkdir(parents=True, exist_ok=True)
        folder = self.path
        while folder != self.root.parent:
            sync_folder(folder)
            folder = folder.parent

    def write_owner(self) -> None:
        """Tell others who holds the LOCK. Only its holder writes here, so one name will do."""
        with suppress(OSError):  # a full disk: an unsigned LOCK is still a LOCK
            draft = self.path / "OWNER.tmp"
            draft.write_text(f"{os.getpid()} {socket.gethostname()}\n")
            draft.replace(self.path / "OWNER")

    def remove_owner(self) -> None:
        with suppress(OSError):
            (self.path / "OWNER").unlink()

    def owner(self) -> str:
        """The holder of the LOCK, as far as it has signed."""
        try:
            pid, host = (self.path / "OWNER").read_text().split()
        except (OSError, ValueError):
            return "another process, which left no name"
        if pid == str(os.getpid()) and host == socket.gethostname():
            return f"this very process (pid {pid}), through another store object"
        return f"process {pid} on host {host}"


def topic_folder(root: Path, scope: str, group: str, topic: str) -> Path:
    """The folder that holds a topic's partitions."""
    return root / _name(scope, "scope") / _name(group, "group") / _name(topic, "topic")


def partition_numbers(folder: Path) -> Iterator[int]:
    """The partitions in a topic's folder that have a database."""
    if folder.is_dir():
        for each in sorted(folder.iterdir()):
            if each.name.isdecimal() and (each / "CURRENT").exists():
                yield int(each.name)


def _name(name: str, what: str) -> str:
    encoded = quote(name, safe="")
    if encoded in ("", ".", "..", "STORE"):  # no name, no folder of its own, and the id's file
        encoded = "".join(f"%{byte:02X}" for byte in name.encode()) or "%"
    if len(encoded) > MAX_NAME_BYTES:
        raise ConfigError(
            [f"the {what} {name[:40]!r}... is too long for the name of a folder: {len(encoded)} "
             f"bytes once encoded, where {MAX_NAME_BYTES} fit"]
        )  # fmt: skip
    return encoded


# -- the store's id --------------------------------------------------------------------------------


def store_id(root: Path) -> bytes:
    """The id of the store at `root`, drawn at random by whoever comes first.

    Safe with several processes at once: a complete file is linked into place, which only one can.
    """
    root.mkdir(parents=True, exist_ok=True)
    file = root / "STORE"
    if not file.exists():
        draft = root / f"STORE.{os.getpid()}.{os.urandom(4).hex()}"
        with draft.open("x") as out:
            out.write(f"effectonce store 1\n{os.urandom(16).hex()}\n")
            out.flush()
            os.fsync(out.fileno())
        try:
            with suppress(FileExistsError):
                os.link(draft, file)
        finally:
            draft.unlink()
    sync_folder(root)
    match = _STORE_FILE.fullmatch(file.read_text(errors="replace"))
    if match is None:
        raise StoreCorrupt(
            f"{file} does not hold a store's id. Put it back from a backup; without one, move the "
            'folder away and start with moved="accept": the group goes on where Kafka\'s offsets '
            "stand, without markers and rows"
        )
    return bytes.fromhex(match[1])


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# -- errors ----------------------------------------------------------------------------------------


def locked(folder: Folder) -> StoreLocked:
    """Somebody else holds the partition's database."""
    return StoreLocked(
        f"{folder.at}: its database {folder.path} is held by {folder.owner()}. Waiting until it "
        "lets go; nothing is lost. A process that is frozen holds on until it goes on or is killed"
    )


def holds_lock(error: Exception) -> bool:
    """Whether an open failed because the LOCK is held: by another process, or by this one."""
    text = str(error)
    busy = "While lock file" in text and "temporarily unavailable" in text
    return busy or "lock hold by current process" in text


def damaged(what: str, subject: object, path: Path) -> StoreCorrupt:
    """A row or a file that cannot be read, and what to do."""
    text = (
        f"{subject}: {what}. Nothing can be said about the keys of {path}, so the partition stops. "
        "Put back a copy made while it was closed: a copy that is too old is found by the offset "
        "that Kafka holds"
    )
    if isinstance(subject, Partition):
        command = quarantine_command(subject, path)
        text += f". Or stop its owner and see what can be set aside: {command}"
    return StoreCorrupt(text)


def quarantine_command(at: Partition, path: Path) -> str:
    """What to type to set aside what cannot be read in a partition's folder."""
    url = f"rocksdb://{quote(str(path.parents[3]))}"
    names = ("--scope", at.scope, "--group", at.group, "--topic", at.topic)
    return shlex.join(["effectonce", "quarantine", url, *names, "--partition", str(at.number)])


def failure(error: Exception, subject: object, path: Path) -> StoreError:
    """What a failed call means, in our words. RocksDB tells only by the text of its error."""
    text = str(error)
    if "corruption" in text.lower():
        return damaged(text, subject, path)
    for sign, advice in _ADVICE:
        if sign.lower() in text.lower():
            return StoreUnavailable(f"{subject}: {advice}. Nothing is lost ({path}: {text})")
    return StoreUnavailable(f"{subject}: the store at {path} failed; nothing is lost: {text}")
