"""From a `Commit` or a `Query` to a script's keys and arguments, and from its answer back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import compress
from typing import Any, Final, TypeAlias

import numpy as np

from effectonce.errors import NotOpen, StoreCorrupt, StoreError
from effectonce.model import (
    Already,
    Applied,
    Commit,
    CommitResult,
    Conflict,
    Known,
    Markers,
    OnExisting,
    Partition,
    Query,
    Rows,
    Stale,
    Unknown,
)
from effectonce.stores.commits import generation_of
from effectonce.stores.encoding import encode_outcome, outcome_key
from effectonce.stores.redis_rows import (
    MARK_BYTES,
    MARKER_BYTES,
    NO_INCARNATION,
    Ownership,
    Row,
    Space,
    decode_pairs,
    encode_elements,
    encode_markers,
    encode_pairs,
    encode_row,
    partition_name,
)
from effectonce.stores.redis_tx import Command
from effectonce.values import dataclass

Arguments: TypeAlias = list[bytes | str]

KEY_BYTES: Final = 16
_FIELD: Final = b"$16\r\n"
_NEVER: Final = b"-"
"""No mark is this: the commit looks at all of its keys."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a script."""

    keys: list[str]
    args: Arguments
    packed_rows: int = 0
    """So many it adds to a list of markers."""


# -- looking up ------------------------------------------------------------------------------------


def lookup_call(space: Space, query: Query, generations: bytes, fence: bytes) -> Call:
    """`fence`: of our ownership; empty where we have none, and the look-up is anybody's."""
    pairs = decode_pairs(generations, space.scope)
    return Call(
        [space.scope, space.positions, *map(space.markers, pairs)],
        [
            generations,
            query.run.to_bytes(4, "big"),
            partition_name(query.at),
            fence,
            query.keys.tobytes(),
        ],
    )


def known(query: Query, answer: Sequence[Any]) -> Known | StoreError:
    """What a look-up answered."""
    match answer:
        case [b"known", bytes(numbers), bytes(found), bytes(mark)]:
            rows = _rows(numbers)
            seen = np.zeros(len(query.keys), np.bool_)
            fingerprints = np.zeros(len(query.keys), np.uint32)
            seen[rows] = True
            fingerprints[rows] = np.frombuffer(found, ">u4")
            return Known(seen, fingerprints, as_of=int.from_bytes(mark, "big"))
        case _:
            return wrong(query.at, answer)


def packed_lookups(space: Space, query: Query, generations: bytes) -> list[bytes]:
    """A HMGET for each generation of the query's run, as bytes for the wire.

    Made in numpy, and answered without a script, which would take each key and each answer through
    Lua: 440 ns a key in place of 790 (Valkey 9.1, 1e6 keys).
    """
    pairs = decode_pairs(generations, space.scope)
    hashes = [space.markers(pair).encode() for pair in pairs if pair[0] == query.run]
    if not hashes or not len(query.keys):
        return []
    rows = np.empty((len(query.keys), len(_FIELD) + KEY_BYTES + 2), np.uint8)
    rows[:, : len(_FIELD)] = np.frombuffer(_FIELD, np.uint8)
    rows[:, len(_FIELD) : -2] = np.ascontiguousarray(query.keys).view(np.uint8)
    rows[:, -2:] = np.frombuffer(b"\r\n", np.uint8)
    fields, count = rows.tobytes(), len(query.keys) + 2
    head = b"*%d\r\n$5\r\nHMGET\r\n$%d\r\n%b\r\n"
    return [head % (count, len(name), name) + fields for name in hashes]


def found_in(query: Query, answers: Sequence[Any]) -> Known | None:
    """What a look-up without keys and the `packed_lookups` behind it found, in one transaction.

    None where anything is amiss: the script tells what it is.
    """
    head, *hashes = answers
    if isinstance(head, Exception) or head[0] != b"known":
        return None
    seen = np.zeros(len(query.keys), np.bool_)
    fingerprints = np.zeros(len(query.keys), np.uint32)
    for values in hashes:
        if isinstance(values, Exception):
            return None
        rows, found = list(compress(range(len(values)), values)), list(filter(None, values))
        # an empty one counts as damaged, not as none
        if set(map(len, found)) - {MARKER_BYTES} or len(found) + values.count(None) != len(values):
            return None
        seen[rows] = True
        packed = np.frombuffer(b"".join(found), np.uint8).reshape(-1, MARKER_BYTES)
        fingerprints[rows] = packed[:, :4].copy().view(">u4")[:, 0]
    return Known(seen, fingerprints, as_of=int.from_bytes(head[3], "big"))


# -- committing ------------------------------------------------------------------------------------


def commit_call(
    space: Space, commit: Commit, generations: bytes, owned: Ownership | None, mark: bytes
) -> Call:
    """`owned`: our ownership in the commit's epoch; None where we have none."""
    at, new, markers = commit.at, commit.position, commit.markers
    name = partition_name(at)
    after, target = generations, 0
    if markers is not None and len(markers):
        after, target = _target(generations, (new.run, generation_of(new)), space)
    else:
        markers = None
    pairs = decode_pairs(after, space.scope)
    commands = commands_in(commit)
    rows = [write for write in commit.writes if not isinstance(write, Command)]
    puts = [each for key, value in rows if value is not None for each in (key, value)]
    deletes = [key for key, value in rows if value is None]
    ours = owned.incarnation if owned else NO_INCARNATION
    keys: list[Any] = [space.scope, space.positions, space.rows(at)]
    keys += [each for pair in pairs for each in (space.markers(pair), space.outcomes(pair))]
    args: Arguments = [
        generations,
        after,
        str(target),
        new.run.to_bytes(4, "big"),
        name,
        owned.fence if owned else b"",
        commit.follows,
        new.commit_id,
        encode_row(name, Row(new, ours, writer=ours)),
        _mark_of(commit.as_of),
        mark,
        "refuse" if commit.on_existing is OnExisting.REFUSE else "keep-first",
    ]
    counts = [str(len(puts) // 2), str(len(deletes)), str(len(commands))]
    elements: list[bytes] = []
    if markers is None:
        args += [b"", "0", *counts]
    elif space.is_packed:
        elements = encode_elements(markers, new, mark)
        args += [str(len(elements)), str(len(markers.outcomes)), *counts, *elements]
        args += _outcomes(markers, generation_of(new), lambda _, key: key)
    else:
        args += [encode_markers(markers, new), str(len(markers.outcomes)), *counts]
        args += _outcomes(markers, generation_of(new), lambda row, _: str(row))
    args += [*puts, *deletes]
    for command in commands:
        keys.append(command[0])
        args += [str(len(command.arguments) + 2), command.name, str(len(keys)), *command.arguments]
    return Call(keys, args, len(elements))


def result(commit: Commit, answer: Sequence[Any]) -> CommitResult:
    """What a commit was answered."""
    match answer:
        case [b"applied", int(existing), *_]:
            return Applied(existing)
        case [b"already", *_]:
            return Already()
        case [b"stale"]:
            return Stale()
        case [b"conflict", bytes(numbers)]:
            return Conflict(tuple(np.unique(_rows(numbers)).tolist()))
        case [b"refused", bytes(why), bytes(name), bytes(key)]:
            return Unknown(_refused(commit, name.decode(), why.decode(errors="replace"), key))
        case _:
            return Unknown(wrong(commit.at, answer))


def conflict_with(rows: Rows) -> list[Any]:
    """What a commit is answered that has markers at these rows already."""
    return [b"conflict", (rows + 1).astype("<u4").tobytes()]


def commands_in(commit: Commit) -> list[Command]:
    """What its `tx` does to keys of the user's."""
    return [write for write in commit.writes if isinstance(write, Command)]


def not_ours(commit: Commit, command: Command) -> StoreError:
    """The store's user has no right to a key of the handler's."""
    why = "is not allowed: the user has no right (~pattern) to read and write its key"
    return _refused(commit, command.name, why, command[0])


def _refused(commit: Commit, name: str, why: str, key: bytes) -> StoreError:
    error = StoreError(
        f"{commit.at}: tx.{name} {why}; nothing was written. Its key is in `__cause__`. Mend the "
        "handler, that key or the user's rights, and restart"
    )
    error.__cause__ = KeyError(key)  # an event ID may be in it: not for the log
    return error


def wrong(at: Partition, answer: Sequence[Any]) -> StoreError:
    """The error for an answer that says what is amiss."""
    match answer:
        case [b"fenced"]:
            return NotOpen(
                f"{at}: somebody has opened it since, or a failover lost its last commits"
            )
        case [b"lost", bytes(key)]:
            return StoreCorrupt(
                f"{at}: the key {key.decode()} is gone, and with it a generation of markers: it "
                "was evicted or deleted, so what took effect would look new. Restore it from "
                "a backup, or use a new scope"
            )
        case [b"damaged", bytes(key)]:
            return StoreCorrupt(f"{at}: the key {key.decode()} holds what effectonce never wrote")
        case _:
            return StoreError(f"{at}: Redis answered what no script says: {answer!r:.80}")


def _rows(numbers: bytes) -> Rows:
    """Lua counts from 1."""
    return np.frombuffer(numbers, "<u4").astype(np.intp) - 1


def _target(generations: bytes, pair: tuple[int, int], space: Space) -> tuple[bytes, int]:
    """The generations once `pair` is among them, and its number, from 1."""
    pairs = decode_pairs(generations, space.scope)
    if pair not in pairs:
        pairs.append(pair)
    return encode_pairs(pairs), pairs.index(pair) + 1


def _mark_of(as_of: int | None) -> bytes:
    if as_of is None:
        return _NEVER
    return as_of.to_bytes(MARK_BYTES, "big") if as_of else b""


def _outcomes(
    markers: Markers, generation: int, name: Callable[[int, bytes], bytes | str]
) -> Arguments:
    found: Arguments = []
    for row, outcome in markers.outcomes.items():
        key = markers.keys[row].tobytes()
        found += [name(row, key), encode_outcome(outcome_key(generation, key), outcome)]
    return found
