"""The `tx` over Redis: rows of the partition, and commands on keys of your own.

    tx.get, put, delete, scan            rows, as in every key-value store; they see what was put
    tx.set, unlink, incrby, hset, hdel,  commands on your own keys: collected, and applied by the
    hincrby, sadd, srem, zadd, zrem,     script that writes marker and position; to read, use a
    rpush                                client of your own, which sees what is committed

A command that would fail (a key of another type, a counter that is no number) fails the whole
commit before anything is written, and the partition stops with that. In a Cluster a key must lie in
the scope's slot: `tx.key("balance")` is one that does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Final, Self, TypeAlias

from effectonce.model import Write
from effectonce.stores.overlay import (
    MAX_KEY_BYTES,
    MAX_VALUE_BYTES,
    Fuse,
    KeyValueTransaction,
    Layer,
    Overlay,
    Row,
    Rows,
)
from effectonce.stores.redis_link import Link, slot_of
from effectonce.stores.redis_rows import Space, rows_under

Text: TypeAlias = bytes | str | int

MAX_STEP: Final = 10**12
"""Counters are below 10^18 before a commit, so it takes eight million such steps to overflow one.
The script would meet that as an error after its first write."""
MAX_ARGUMENTS: Final = 1_000
"""Of one command; Lua hands over at most 8,000 values at once."""


class Command(tuple[bytes, None]):
    """A command on a key of the user's. It travels as a `Write`, and no row is one of these."""

    name: str
    arguments: tuple[bytes, ...]

    def __new__(cls, name: str, key: bytes, arguments: tuple[bytes, ...]) -> Self:
        self = super().__new__(cls, (key, None))
        self.name, self.arguments = name, arguments
        return self


class Commands(Layer):
    """One event's commands. Keys and values: bytes, or str (UTF-8), or int (decimal)."""

    __slots__ = ()
    _commands: list[Command]
    _is_cluster: bool
    _space: Space

    def key(self, name: str) -> str:
        """A key of that name which lies in the scope's slot."""
        return f"{{{self._space.tag}}}:{name}"

    def set(self, key: Text, value: Text) -> None:
        self._add("set", key, value)

    def unlink(self, *keys: Text) -> None:
        """Remove whole keys, of whatever type."""
        for key in keys:
            self._add("unlink", key)

    def incrby(self, key: Text, step: int = 1) -> None:
        self._add("incrby", key, _checked(step))

    def hset(self, key: Text, mapping: Mapping[Text, Text]) -> None:
        self._add("hset", key, *(each for pair in mapping.items() for each in pair))

    def hdel(self, key: Text, *fields: Text) -> None:
        self._add("hdel", key, *fields)

    def hincrby(self, key: Text, field: Text, step: int = 1) -> None:
        self._add("hincrby", key, field, _checked(step))

    def sadd(self, key: Text, *members: Text) -> None:
        self._add("sadd", key, *members)

    def srem(self, key: Text, *members: Text) -> None:
        self._add("srem", key, *members)

    def zadd(self, key: Text, scores: Mapping[Text, float]) -> None:
        pairs = ((_score(score), member) for member, score in scores.items())
        self._add("zadd", key, *(each for pair in pairs for each in pair))

    def zrem(self, key: Text, *members: Text) -> None:
        self._add("zrem", key, *members)

    def rpush(self, key: Text, *values: Text) -> None:
        self._add("rpush", key, *values)

    def commands(self) -> tuple[Command, ...]:
        return tuple(self._commands)

    def _add(self, name: str, key: Text, *arguments: Text) -> None:
        self._check_open()
        if not arguments and name != "unlink":
            raise ValueError(f"{name}: nothing to write")
        if len(arguments) > MAX_ARGUMENTS:
            raise ValueError(f"{name}: {MAX_ARGUMENTS} arguments at most, not {len(arguments)}")
        whole = _bytes(key)
        self._check_key(whole)
        given = tuple(_bytes(argument) for argument in arguments)
        if sum(map(len, given)) > MAX_VALUE_BYTES:
            raise ValueError(f"{name}: its arguments have more than {MAX_VALUE_BYTES} bytes")
        self._commands.append(Command(name, whole, given))

    def _check_key(self, key: bytes) -> None:
        if not 0 < len(key) <= MAX_KEY_BYTES:
            raise ValueError(f"a key has 1 to {MAX_KEY_BYTES} bytes; this one has {len(key)}")
        if key.startswith(f"{self._space.prefix}:".encode()):
            raise ValueError(f"keys that begin with {self._space.prefix}: are effectonce's own")
        if self._is_cluster and slot_of(key) != slot_of(self._space.scope.encode()):
            raise ValueError(
                "a key outside the scope's slot cannot be written with its marker in one step: in "
                "a Cluster, take tx.key(name)"
            )


class RedisTx(Commands, Overlay):
    """One event's rows and commands."""

    __slots__ = ("_commands", "_is_cluster", "_space")

    def __init__(self, below: Rows, fuse: Fuse, space: Space, *, is_cluster: bool) -> None:
        super().__init__(below, fuse)
        self._commands = []
        self._space = space
        self._is_cluster = is_cluster


class RedisTransaction(KeyValueTransaction):
    """A batch's rows and commands, event by event."""

    def __init__(self, rows: Rows, space: Space, *, is_cluster: bool) -> None:
        super().__init__(rows)
        self._space = space
        self._is_cluster = is_cluster
        self._commands: list[Command] = []

    def keep(self, tx: object) -> None:
        super().keep(tx)
        self._commands += commands_of(tx)

    def writes(self) -> tuple[Write, ...]:
        return (*super().writes(), *self._commands)

    def _layer(self) -> RedisTx:
        return RedisTx(self._batch, self._fuse, self._space, is_cluster=self._is_cluster)


def commands_of(tx: object) -> tuple[Command, ...]:
    """What a `tx` that was kept adds to its batch's rows."""
    return tx.commands() if isinstance(tx, Commands) else ()


def _bytes(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, int) and not isinstance(value, bool):
        return b"%d" % value
    raise TypeError(f"bytes, str or int, not {type(value).__name__}")


def _checked(step: int) -> int:
    if abs(step) > MAX_STEP or step != int(step):
        raise ValueError(f"a step is a whole number of at most {MAX_STEP} either way")
    return step


def _score(score: float) -> str:
    if math.isnan(score):
        raise ValueError("a score must be a number, not NaN")
    return repr(float(score))


class PartitionRows:
    """The committed rows of one partition. A scan reads them all: Redis keeps no order."""

    def __init__(self, link: Link, key: str) -> None:
        self._link = link
        self._key = key

    def get(self, key: bytes) -> bytes | None:
        value: bytes | None = self._link.read("HGET", self._key, key)
        return value

    def scan(self, prefix: bytes) -> Iterator[Row]:
        return iter(rows_under(self._link.read("HGETALL", self._key), prefix))
