"""What a measured process is told and what it answers; no import, so that any venv can read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Store: TypeAlias = Literal[
    "",
    "rocksdb",
    "rocksdb synced",
    "redis",
    "redis local index",
    "by hand",
    "empty folder",
    "empty valkey",
]
"""What stands ready before a run: a filled store of ours, Valkey filled as by hand, or nothing."""
VALKEY: Final = frozenset[Store]({"redis", "redis local index", "by hand", "empty valkey"})


@dataclass(frozen=True, slots=True)
class Contender:
    """A column of the report. `part`: its share of the messages, since some are slow."""

    name: str
    runs: str
    size: int = 500
    part: float = 1.0
    store: Store = ""
    warm_up: int = 0
    """Messages on top of its part that are dealt with before its clock starts."""
    dedupes: bool = True
    """Whether it promises that an event ID reaches the handler once."""
    ahead: bool = True
    """Whether the client holds the whole topic before its clock starts; else it is live."""
    beside: str = "bare"
    """Whose time in the same round its share is taken of."""

    @property
    def load(self) -> tuple[float, int]:
        """Contenders that agree in it are given the same topic."""
        return self.part, self.warm_up


@dataclass(frozen=True, slots=True)
class Job:
    """What a process is to do."""

    contender: str
    bootstrap: str
    topic: str
    messages: int
    state: str = ""
    """The folder or the URL of its store."""
    size: int = 500
    """Records a batch."""
    warm_up: int = 0
    """How many of the messages come before the clock starts."""
    ahead: bool = True
    """Whether the topic is to be fetched ahead."""
    mixed: bool = False
    """Whether it is to be fetched a few records of each partition at a time."""
    turn: int = 0
    """Messages before it waits until it is its turn again; 0: it runs alone."""


@dataclass(frozen=True, slots=True)
class Run:
    """What it did: `handled` of all, and how long `messages` of them took (the rest came early)."""

    messages: int
    seconds: float
    handled: int
