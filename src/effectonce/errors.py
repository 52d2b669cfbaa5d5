"""Everything that effectonce raises, in one tree.

    EffectOnceError
    |- ConfigError           yours: refused at construction, every problem at once
    |- UnknownTopic          yours: the topic does not exist, or has vanished
    |- StartRefused          a partition may not begin: a row of the start table says why
    |- PartitionStopped      a record holds its partition; the partitions beside it go on
    |  |- HandlerFailed      the handler failed on every attempt
    |  |- Unidentified       no usable event ID was found
    |  `- IdReused           one event ID came with two different payloads
    |- HandlerTimeout        the handler outlived `handler_timeout_seconds` and was cut off
    |- TransactionClosed     a `tx` was used after its event had ended
    |- Rival                 someone else opens this partition again and again
    |- BrokerError           Kafka did not answer, or refused a call; tried again while that helps
    `- StoreError
       |- StoreUnavailable   down, full, slow: waited for, nothing is lost
       |  |- StoreLocked     another process still holds the partition's database
       |  `- NotOpen         another has opened the partition since; a consumer opens it again
       `- StoreCorrupt       an unreadable row: never "new", never "seen"; the partition stops

Whatever is raised, no position has passed a record whose effect did not happen: the record is
still in Kafka, and the message says what to do.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "BrokerError",
    "ConfigError",
    "EffectOnceError",
    "HandlerFailed",
    "HandlerTimeout",
    "IdReused",
    "NotOpen",
    "PartitionStopped",
    "Rival",
    "StartRefused",
    "StoreCorrupt",
    "StoreError",
    "StoreLocked",
    "StoreUnavailable",
    "TransactionClosed",
    "Unidentified",
    "UnknownTopic",
]


class EffectOnceError(Exception):
    """The root of the tree above."""


class ConfigError(EffectOnceError):
    """The configuration cannot keep its promise. `problems` holds every finding, not the first."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = "1 problem" if count == 1 else f"{count} problems"
        super().__init__(
            f"{head} in the configuration:" + "".join(f"\n  - {p}" for p in self.problems)
        )


class UnknownTopic(EffectOnceError):
    """The topic does not exist on this cluster, or it vanished under the running consumer."""


class StartRefused(EffectOnceError):
    """A partition may not begin where the store and Kafka disagree.

    `row` is the row of the start table (docs/starting.md) that refused.
    """

    def __init__(self, message: str, *, row: str) -> None:
        self.row = row
        super().__init__(message)


class PartitionStopped(EffectOnceError):
    """A record holds its partition: paused, still assigned, red in `health()`."""


class HandlerFailed(PartitionStopped):
    """The handler failed on every attempt; `__cause__` is its last exception."""


class Unidentified(PartitionStopped):
    """No usable event ID: missing, empty, too long, repeated, not UTF-8, or a null value."""


class IdReused(PartitionStopped):
    """An event ID that took effect (or is about to) came again with another payload."""


class HandlerTimeout(EffectOnceError):
    """The handler ran past `handler_timeout_seconds`; its transaction is dead, the group left."""


class TransactionClosed(EffectOnceError):
    """A `tx` was used after its event had ended, or after the handler had been cut off."""


class Rival(EffectOnceError):
    """The partition was opened by someone else again and again."""


class BrokerError(EffectOnceError):
    """Kafka did not answer, or refused a call. Positions are in the store: nothing is lost."""


class StoreError(EffectOnceError):
    """The store could not do what was asked."""


class StoreUnavailable(StoreError):
    """Down, full or slow. Partitions stay assigned and paused; Kafka is the buffer."""


class StoreLocked(StoreUnavailable):
    """Another process holds the partition's database. Waited for, never broken."""


class NotOpen(StoreUnavailable):
    """Asked of a partition that this process has not opened, has released, or has lost."""


class StoreCorrupt(StoreError):
    """A row cannot be read, so nothing can be said about its keys. The partition stops."""
