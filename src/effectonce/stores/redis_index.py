"""index="local": the markers of our partitions in memory, so that a look-up asks nobody.

On the server they lie packed, a row a commit: durable, ordered, cheap to write, and of no use to a
look-up there. An image holds what a scope's `mark` stands for: 8 bytes, new with every commit of
markers. `fence` is the row (incarnation, epoch, commit id) behind which that was so. Our own
commits lead on from there; whatever cannot be followed throws the image away, and it is loaded
again:

| what happened                                | known by                    | then                |
| -------------------------------------------- | --------------------------- | ------------------- |
| our commit was applied, on top of this       | its answer                  | its keys join       |
| a former owner noted facts (effects outside) | the mark, at our commit     | that is not applied |
|                                              | or a check                  | yet; loaded again   |
| Conflict, Stale, no answer                   | its answer                  | loaded again        |
| opened again, another run                    | the fence, the run          | loaded again        |
| a commit has no answer yet                   | there is no commit id       | loaded, not kept    |
| another owner, or the server went back       | a check, the next commit    | NotOpen, Stale      |
| a generation is gone                         | a check, the next commit    | StoreCorrupt        |

Markers are only ever added, in the order of the marks. So an image of one moment is loaded with as
many calls as it takes: that moment's lengths say how far to read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

import numpy as np

from effectonce.errors import NotOpen, StoreError, StoreUnavailable
from effectonce.model import Commit, Keys, Known, Markers, OnExisting, Partition, Query, Rows
from effectonce.stores.commits import generation_of, select
from effectonce.stores.encoding import PackedRow, count_packed, join_columns
from effectonce.stores.marked import MarkedKeys, new_index, room_for
from effectonce.stores.redis_checks import probe_problem
from effectonce.stores.redis_commit import conflict_with, wrong
from effectonce.stores.redis_link import Link
from effectonce.stores.redis_rows import Ownership, Space, decode_element, decode_pairs
from effectonce.stores.redis_scripts import PROBE_PACKED

Ask: TypeAlias = Callable[[Query, bytes], Any]
"""What the server says of a TAG under a fence, once generations are known. Raises StoreError."""

NO_KEYS: Final[Keys] = np.empty((0, 2), np.uint64)
RIGHTS: Final = ("+rpush", "+llen", "+lrange")

SLICE_BYTES: Final = 256 * 1024
"""Asked for at once: 0.14 ms of the server's time (Valkey 9.1)."""
SLICE_ROWS: Final = (16, 2000)
"""So many packed rows, the least and the most; how large they are, the last ones tell."""

MOST_ROOM: Final = 2**22
"""So many keys are made room for on a guess: the first rows, of a backlog, may be a thousand times
larger than those of the trickle behind it."""

CHECK_SECONDS: Final = 0.1
"""How long an image is trusted that the server has not confirmed: a check is a call of 0.2 ms, and
one of 500 keys takes 0.05 ms from memory."""

LOADS: Final = 20
"""Attempts at an image while generations come and go."""


@dataclass(slots=True)
class Image:
    """One partition's markers of one run, as the server had them at one moment."""

    run: int
    fence: bytes
    mark: int
    checked: float
    """When the server was last asked, and said so."""
    taken: float = 0.0
    """When the commit that it was taken for was about to be sent."""
    marked: MarkedKeys = field(default_factory=MarkedKeys)
    rows: dict[int, int] = field(default_factory=dict)
    """How many packed rows of each generation are in it."""
    expects: bytes = b""
    """The id of the commit whose keys are in it already, though its answer is not back."""
    in_order: bool = True
    """No generation was added to after a younger one: else it could not be dropped by itself."""

    def look_up(self, keys: Keys) -> Known:
        return Known(*self.marked.look_up(keys), as_of=self.mark)

    def add(self, commit: Commit, markers: Markers, rows: int) -> None:
        """What a commit marks, in so many packed rows."""
        self._note(generation := generation_of(commit.position), rows)
        self.marked.insert(generation, markers.keys, markers.fingerprints)

    def add_rows(self, generation: int, rows: list[PackedRow], left: int) -> None:
        """What was read of a generation; `left` so many of its rows come with and behind them."""
        self._note(generation, len(rows))
        keys, fingerprints = join_columns(rows)
        if not len(self.marked.index):
            # room for all at once, guessed from the first rows, so that the table need not grow
            guess = room_for(len(keys) * left // len(rows))
            self.marked.index = new_index(capacity=max(len(keys), min(guess, MOST_ROOM)))
        self.marked.insert(generation, keys, fingerprints)

    def _note(self, generation: int, rows: int) -> None:
        self.in_order &= generation >= max(self.marked.first_position, default=0)
        self.rows[generation] = self.rows.get(generation, 0) + rows


@dataclass(frozen=True, slots=True)
class Early:
    """What an image says once the commit in front is applied, found while the server is at work."""

    image: Image
    count: int
    known: Known


class LocalIndex:
    """The images of all partitions of a store.

    An image is taken out while a commit is under way, and put back once it stands for the moment
    behind it: whatever comes between, an interrupt too, leaves none.
    """

    def __init__(self, link: Link, ask: Ask, generations: Mapping[str, bytes]) -> None:
        """`generations`: of each TAG, as `ask` last met them."""
        self._link = link
        self._ask = ask
        self._generations = generations
        self._images: dict[Partition, Image] = {}

    def look_up(
        self, query: Query, space: Space, ours: Ownership | None, early: Early | None = None
    ) -> Known:
        """Raises StoreError."""
        fence = ours.whole_fence if ours else b""
        if ours is None or ours.commit_id is None:
            return self.load(query, space, fence).look_up(query.keys)
        image = self._images.get(query.at)
        if image is None or not self._is_current(image, query, fence):
            self._images.pop(query.at, None)
            image = self._images[query.at] = self.load(query, space, fence)
        if early and early.image is image and early.count == len(image.marked.index):
            return replace(early.known, as_of=image.mark)
        return image.look_up(query.keys)

    def look_up_early(self, image: Image | None, commit: Commit, query: Query) -> Early | None:
        """Before the answer to `commit` is read, for which `image` was taken."""
        if image is None or image.run != query.run or image.expects != commit.position.commit_id:
            return None
        return Early(image, len(image.marked.index), image.look_up(query.keys))

    def as_of(self, image: Image | None, commit: Commit) -> Commit:
        """The commit, where its keys were not looked up at one moment, as of the image."""
        markers = commit.markers
        if image is None or commit.as_of is not None or markers is None or not len(markers):
            return commit
        if image.run != commit.position.run or image.marked.look_up(markers.keys)[0].any():
            return commit
        return replace(commit, as_of=image.mark)

    def expect(self, image: Image | None, commit: Commit, rows: int) -> Image | None:
        """The image with what `commit` marks, which is on its way; it is put back by `follow`.

        `rows`: how many packed ones it sends.
        """
        markers, new = commit.markers, commit.position
        if image is None or (commit.as_of, new.run) != (image.mark, image.run):
            return image
        if markers is not None and len(markers):
            image.add(commit, markers, rows)
        image.expects = new.commit_id
        return image

    def take(self, at: Partition) -> Image | None:
        """The image, which is the caller's from now on."""
        image = self._images.pop(at, None)
        if image is not None:
            image.taken = time.monotonic()
        return image

    def follow(
        self, image: Image | None, commit: Commit, ours: Ownership | None, mark: bytes, answer: Any
    ) -> None:
        """Put the image back that was taken for `commit`, if the answer leads on from it.

        `mark`: the commit's own.
        """
        if image is not None and ours is not None and _leads_on(image, commit, ours, mark, answer):
            self._images[commit.at] = image

    def deliver(
        self,
        commit: Commit,
        space: Space,
        image: Image | None,
        put: Callable[[Commit], list[Any]],
    ) -> tuple[Commit, Image | None, list[Any]]:
        """The commit as it went through, the image it went by, and the answer. Raises StoreError.

        The server cannot look for copies among packed markers: it knows whether somebody has marked
        since we looked, and then we look again.
        """
        sent, existing = self.as_of(image, commit), 0
        for _ in range(LOADS):
            answer = put(sent)
            if existing and answer[0] == b"applied":
                answer[1] = existing
            if answer[0] != b"marked":
                return sent, image, answer
            query = Query(commit.at, NO_KEYS, commit.position.run)
            image = self._read_on(query, space, image)
            sent, copies = _without_copies(commit, image)
            existing = len(copies)
            if existing and commit.on_existing is OnExisting.REFUSE:
                return sent, None, conflict_with(copies)
        raise StoreUnavailable(f"{space.scope}: others mark faster than this process")

    def _read_on(self, query: Query, space: Space, image: Image | None) -> Image:
        """An image of now; on from this one only where the row is ours still. Raises StoreError.

        What a failover took back may have been followed by as many rows of somebody else's.
        """
        if image is not None:
            with suppress(NotOpen):
                return self.load(query, space, image.fence, image)
        return self.load(query, space, b"")

    def forget(self, at: Partition) -> None:
        self._images.pop(at, None)

    def clear(self) -> None:
        self._images.clear()

    def load(self, query: Query, space: Space, fence: bytes, known: Image | None = None) -> Image:
        """An image of now, made of a former one as far as that goes. Raises StoreError."""
        for _ in range(LOADS):
            if (image := self._load(query, space, fence, known)) is not None:
                return image
            known = None
        raise StoreUnavailable(f"{space.scope}: its generations change faster than they are read")

    def _is_current(self, image: Image, query: Query, fence: bytes) -> bool:
        """Raises StoreError."""
        if image.fence != fence or image.run != query.run:
            return False
        now = time.monotonic()
        if now - image.checked >= CHECK_SECONDS:
            mark, _ = self._moment(query, fence)
            if mark != image.mark:
                return False
            image.checked = now
        return True

    def _moment(self, query: Query, fence: bytes) -> tuple[int, list[int]]:
        """The mark now, and how many packed rows each generation of the run has."""
        match self._ask(replace(query, keys=NO_KEYS), fence):
            case [b"known", bytes(mark), list(lengths)]:
                return _number(mark), lengths
            case answer:
                raise wrong(query.at, answer)

    def _load(self, query: Query, space: Space, fence: bytes, known: Image | None) -> Image | None:
        """None where a generation went meanwhile."""
        now = time.monotonic()
        mark, lengths = self._moment(query, fence)
        pairs = decode_pairs(self._generations.get(space.tag, b""), space.scope)
        of_run = (generation for run, generation in pairs if run == query.run)
        there = dict(sorted(zip(of_run, lengths, strict=True)))
        if known is None or known.run != query.run or not _is_part(known.rows, there):
            known = Image(query.run, fence, mark, now)
        image = replace(known, fence=fence, mark=mark, checked=now, expects=b"")
        for number, (generation, length) in enumerate(there.items()):
            for rows in self._slices(space, generation, image, length):
                if rows is None:
                    return None
                image.add_rows(generation, rows, sum(list(there.values())[number:]))
        return image

    def _slices(
        self, space: Space, generation: int, image: Image, length: int
    ) -> Iterator[list[PackedRow] | None]:
        """The packed rows of a generation that are not in the image yet."""
        name = space.markers((image.run, generation))
        first, most = image.rows.get(generation, 0), SLICE_ROWS[0]
        while first < length:
            last = min(first + most, length) - 1
            found: list[bytes] = self._link.read("LRANGE", name, str(first), str(last))
            if len(found) != last - first + 1:
                yield None
                return
            yield [decode_element(element, generation, name) for element in found]
            first = last + 1
            mean = sum(map(len, found)) // len(found)
            most = min(max(SLICE_BYTES // mean, SLICE_ROWS[0]), SLICE_ROWS[1])


def problem_of(link: Link, space: Space) -> str | None:
    """What keeps this user from it, or None. Raises StoreUnavailable."""
    try:
        link.run(PROBE_PACKED, [space.positions], [])
    except StoreError as error:
        return probe_problem(error)
    return None


def _is_part(rows: Mapping[int, int], there: Mapping[int, int]) -> bool:
    """Whether no generation went or lost rows: an old copy of the server may have been restored."""
    return all(there.get(generation, 0) >= count for generation, count in rows.items())


def _without_copies(commit: Commit, image: Image) -> tuple[Commit, Rows]:
    """The commit as of the image, less the markers that are there; and which those are."""
    assert commit.markers is not None
    seen, _ = image.marked.look_up(commit.markers.keys)
    left = replace(commit, markers=select(commit.markers, ~seen), as_of=image.mark)
    return left, seen.nonzero()[0]


def _leads_on(image: Image, commit: Commit, ours: Ownership, mark: bytes, answer: Any) -> bool:
    """Whether `image` stands, as it is left now, for the moment behind the commit."""
    new = commit.position
    match answer:
        case [b"already", bytes(now)]:  # sent to see that all is well; else the fence is another
            return image.mark == _number(now)
        case [b"applied", int(), bytes(generations), bytes(before)]:
            if (image.mark, image.run) != (_number(before), new.run):
                return False
            markers = commit.markers
            if markers is not None and len(markers):
                image.checked = image.taken  # all that a check asks for, it has met
                if image.expects != new.commit_id:
                    image.add(commit, markers, count_packed(markers))
                image.mark = _number(mark)
            image.fence = ours.fence + new.commit_id
            return _drop(image, {g for run, g in decode_pairs(generations, "") if run == new.run})
        case _:
            return False


def _drop(image: Image, kept: set[int]) -> bool:
    """Forget the generations that the commit has dropped; false where they cannot be told apart."""
    if kept.issuperset(image.rows):
        return True
    image.marked.drop_below(min(kept, default=2**32))
    image.rows = {g: rows for g, rows in image.rows.items() if g in kept}
    return image.in_order


def _number(mark: bytes) -> int:
    return int.from_bytes(mark, "big")
