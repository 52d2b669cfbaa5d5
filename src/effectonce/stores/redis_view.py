"""What Redis holds, for people: read beside the consumers, from masters, and nothing is written.

| seen                                     | told as                            |
| ---------------------------------------- | ---------------------------------- |
| a row, a marker that does not decode     | a problem of its TAG               |
| a generation that is listed, and gone    | a problem of its TAG               |
| one that is there, and not listed        | a problem of its TAG               |
| markers without positions                | a problem of their TAG             |
| something of another type under our key  | a problem of its TAG               |
| keys evicted since the server started    | a problem of every TAG             |
| a server that is no master               | refused: it may lag                |
| one node of a Cluster                    | refused: it has its own slots only |

Each TAG is read in one transaction, and only a view without a problem can say that an event ID has
no marker. A marker does not say which partition it came from: it is its scope's, or with
layout="partition" its TAG's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

from effectonce.errors import ConfigError, StoreCorrupt, StoreError, StoreUnavailable
from effectonce.model import Marker, Partition, Position, Status
from effectonce.stores.encoding import PackedRow, decode_outcome, outcome_key
from effectonce.stores.redis_checks import ask
from effectonce.stores.redis_link import Arguments, Link, translated
from effectonce.stores.redis_rows import (
    PREFIX,
    Space,
    decode_element,
    decode_marker,
    decode_pairs,
    decode_row,
    outcome_gone,
)

Pair: TypeAlias = tuple[int, int]
_Found: TypeAlias = "tuple[int, bytes | PackedRow | None, bytes | None]"
"""How many markers; that of the key, as it lies there; and the key's outcome."""

_FORMS: Final[tuple[list[str], ...]] = ([], ["packed"])
_SLICE: Final = 64
"""Packed rows that are read at once."""
_ATTEMPTS: Final = 20
"""A generation that begins while its TAG is read makes it be read once more."""


@dataclass(slots=True)
class View:
    """One moment of a TAG."""

    scope: str
    at: Partition | None = None
    """The only partition of the TAG, with layout="partition"."""
    positions: dict[Partition, Position] = field(default_factory=dict)
    markers: dict[Pair, int] = field(default_factory=dict)
    """How many, of each run and generation."""
    found: list[Marker] = field(default_factory=list)
    """The markers of the key that was asked for, one a run as a rule."""
    problems: list[str] = field(default_factory=list)
    """What could not be read, or proves nothing."""

    @property
    def whole(self) -> bool:
        """Whether what does not stand here stands nowhere under this TAG."""
        return not self.problems


def look(link: Link, key: bytes | None = None) -> list[View]:
    """Every TAG as it is now, with the markers of `key`. Raises StoreError, ConfigError."""
    tags = _tags(link)
    views = [_view(link, tag, pairs, key) for tag, pairs in sorted(tags.items())]
    for server in ask(link, settings=False):  # behind the reads: what it is now, it was then
        if server.role not in ("master", "primary"):
            raise ConfigError([f"Redis{server.name} is a {server.role}: give the master's address"])
        if server.is_cluster and not link.is_cluster:
            raise ConfigError(["it is a node of a Cluster, one of several: add ?cluster=true"])
        if server.evicted_keys:
            for view in views:
                view.problems.append(
                    f"Redis{server.name} has evicted {server.evicted_keys:,} keys since it started"
                )
    return views


def _tags(link: Link) -> dict[str, set[Pair]]:
    """Every TAG that holds positions or markers, and the generations whose hashes are there."""
    found: defaultdict[str, set[Pair]] = defaultdict(set)
    for name in link.scan(f"{PREFIX}:{{*"):
        tag, closed, rest = name.decode(errors="replace").partition("{")[2].partition("}")
        match rest.split(":"):
            case [""] | ["", "positions"] if closed:
                found[tag].update()
            case ["", "markers", run, generation] if run.isdecimal() and generation.isdecimal():
                found[tag].add((int(run), int(generation)))
            case _:
                pass  # rows, outcomes, and what holds no marker
    return found


def _view(link: Link, tag: str, there: set[Pair], key: bytes | None) -> View:
    match [unquote(part) for part in tag.split(":")]:
        case [scope]:
            view = View(scope)
        case [scope, group, topic, number, *packed] if number.isdecimal() and packed in _FORMS:
            view = View(scope, Partition(scope, group, topic, int(number)))
        case _:
            return View(tag, problems=[f"the keys of {{{tag}}} are none of effectonce's"])
    try:
        _read(view, link, Space(PREFIX, tag, is_packed=tag.endswith(":packed")), there, key)
    except StoreError as error:
        view.problems.append(str(error))
    return view


def _read(view: View, link: Link, space: Space, there: set[Pair], key: bytes | None) -> None:
    pairs = sorted(there)
    for _ in range(_ATTEMPTS):
        packed, rows, found = _together(link, space, pairs, key)
        listed = set(decode_pairs(packed or b"", space.scope))
        if not listed <= set(pairs):
            pairs = sorted(listed.union(pairs))
        elif not space.is_packed or _unpack(view, link, space, found, key):
            break
    else:
        raise StoreUnavailable(f"{space.scope}: its generations change faster than they are read")
    _note_positions(view, space, rows)
    for pair, (count, marker, outcome) in found.items():
        name = f"generation {pair[1]} of run {pair[0]}"
        if count:
            view.markers[pair] = count
        if pair in listed and not count:
            view.problems.append(f"{name} is gone: the key {space.markers(pair)} is not there")
        if count and pair not in listed:
            view.problems.append(f"{name} is there, but the key {space.scope} does not list it")
        if key is not None and marker is not None:
            _note_marker(view, pair, key, marker, outcome)


def _together(link: Link, space: Space, pairs: list[Pair], key: bytes | None) -> tuple[Any, ...]:
    """All that is asked of a TAG, at one moment; of packed markers, how many rows they are in."""
    commands: list[Arguments] = [["HGET", space.scope, "generations"]]
    commands += [["HGETALL", space.positions]]
    commands += [["LLEN" if space.is_packed else "HLEN", space.markers(pair)] for pair in pairs]
    if key is not None:
        commands += [["HGET", space.outcomes(pair), key] for pair in pairs]
        if not space.is_packed:
            commands += [["HGET", space.markers(pair), key] for pair in pairs]
    answers = link.together(space.positions, commands, transaction=True)
    for answer in answers:
        if isinstance(answer, Exception):
            raise translated(answer) from answer
    generations, rows, *rest = answers
    rest += [None] * (3 * len(pairs) - len(rest))
    size = len(pairs)
    counts, outcomes, markers = rest[:size], rest[size : 2 * size], rest[2 * size :]
    of_pairs = zip(counts, markers, outcomes, strict=True)
    return generations, rows, dict(zip(pairs, of_pairs, strict=True))


def _unpack(
    view: View, link: Link, space: Space, found: dict[Pair, _Found], key: bytes | None
) -> bool:
    """Count the markers, and find the key's: rows are only added, so those of that moment remain.

    False where a generation went meanwhile.
    """
    for pair, (size, _, outcome) in found.items():
        count, holds = 0, None
        try:
            for row in _packed_rows(link, space, pair, size):
                if row is None:
                    return False
                count += row.count
                if holds is None and key is not None and row.row_of(key) is not None:
                    holds = row
        except StoreCorrupt as error:
            view.problems.append(str(error))
        found[pair] = (count, holds, outcome)
    return True


def _packed_rows(link: Link, space: Space, pair: Pair, size: int) -> Iterator[PackedRow | None]:
    """The first `size` packed rows of a generation; None where it went. Raises StoreError."""
    name = space.markers(pair)
    for first in range(0, size, _SLICE):
        last = min(first + _SLICE, size) - 1
        elements = link.call("LRANGE", name, first, last)
        if len(elements) != last - first + 1:
            yield None
            return
        for element in elements:
            yield decode_element(element, pair[1], name)


def find(link: Link, space: Space, key: bytes) -> Marker | None:
    """The youngest marker of `key`. Raises StoreError."""
    packed: bytes = link.read("HGET", space.scope, "generations") or b""
    for pair in sorted(decode_pairs(packed, space.scope), reverse=True):
        marker = _find(link, space, pair, key)
        if marker is None:
            continue
        if marker.status is Status.DONE:
            return marker
        value: bytes | None = link.read("HGET", space.outcomes(pair), key)
        if value is None:
            raise outcome_gone(pair)
        return replace(marker, outcome=decode_outcome(outcome_key(pair[1], key), value))
    return None


def _find(link: Link, space: Space, pair: Pair, key: bytes) -> Marker | None:
    """The marker of `key` in a generation, without its outcome. Raises StoreError."""
    if not space.is_packed:
        value: bytes | None = link.read("HGET", space.markers(pair), key)
        return None if value is None else decode_marker(key, value, pair)
    for row in _packed_rows(link, space, pair, link.read("LLEN", space.markers(pair))):
        if row is not None and (number := row.row_of(key)) is not None:
            return row.marker(number)
    return None


def _note_positions(view: View, space: Space, rows: dict[bytes, bytes]) -> None:
    if not rows:
        view.problems.append(f"the key {space.positions} is not there, though others are")
    for packed_name, value in rows.items():
        name = packed_name.decode(errors="replace")
        match [unquote(part) for part in name.split(":")]:
            case [group, topic, number] if number.isdecimal():
                at = Partition(view.scope, group, topic, int(number))
            case _:
                view.problems.append(f"{space.positions} has a row of no partition")
                continue
        try:
            view.positions[at] = decode_row(name, value).position
        except StoreCorrupt as error:
            view.problems.append(str(error))


def _note_marker(
    view: View, pair: Pair, key: bytes, value: bytes | PackedRow, outcome: bytes | None
) -> None:
    try:
        if isinstance(value, PackedRow):
            number = value.row_of(key)
            assert number is not None
            marker = value.marker(number)
        else:
            marker = decode_marker(key, value, pair)
        view.found.append(marker)
        if marker.status is not Status.DONE:
            if outcome is None:
                raise StoreCorrupt(f"an outcome of generation {pair[1]}, run {pair[0]}, is gone")
            told = decode_outcome(outcome_key(pair[1], key), outcome)
            view.found[-1] = replace(marker, outcome=told)
    except StoreCorrupt as error:
        view.problems.append(str(error))
