"""index="local": the markers of our partitions in memory too, so that a look-up asks nobody.

An image holds what a scope's `mark` stands for: 8 bytes, new with every commit of markers. `fence`
is the row (incarnation, epoch, commit id) behind which that was so. Our own commits lead on from
there; whatever cannot be followed throws the image away, and it is loaded again:

| what happened                                | known by                    | then                |
| -------------------------------------------- | --------------------------- | ------------------- |
| our commit was applied, on top of this       | its answer: the mark before | its keys join       |
| a former owner noted facts (effects outside) | that mark, or a check       | loaded again        |
| Conflict, Stale, no answer                   | its answer                  | loaded again        |
| opened again, another run                    | the fence, the run          | loaded again        |
| a commit has no answer yet                   | there is no commit id       | the server is asked |
| another owner, or the server went back       | a check, the next commit    | NotOpen, Stale      |
| a generation is gone                         | a check, the next commit    | StoreCorrupt        |

It is loaded when the partition is opened, behind the fence, so that no former owner commits
in-store effects meanwhile; in slices, of which each stands in one transaction with the proof that
nothing was marked since the first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

import numpy as np
from redis.exceptions import NoScriptError

from effectonce.errors import StoreCorrupt, StoreError
from effectonce.model import Commit, Fingerprints, Keys, Known, Markers, Partition, Query
from effectonce.stores.commits import generation_of, select
from effectonce.stores.marked import MarkedKeys
from effectonce.stores.redis_commit import KEY_BYTES, lookup_call
from effectonce.stores.redis_link import Arguments, Link, is_forbidden, translated
from effectonce.stores.redis_rows import MARKER_BYTES, Ownership, Space, decode_pairs
from effectonce.stores.redis_scripts import LOOKUP

Ask: TypeAlias = Callable[[Query], Known]
"""The server's own answer to a look-up. Raises StoreError."""

NO_KEYS: Final[Keys] = np.empty((0, 2), np.uint64)
RIGHTS: Final = ("+hscan",)

SLICE: Final = 1_000
"""Markers that are asked for at once: they hold the server for 0.25 ms, 10,000 of them for 4 ms,
and 1e6 are loaded in 1.1 to 1.2 s either way (Valkey 9.1 on the same machine)."""

CHECK_SECONDS: Final = 0.1
"""How long an image is trusted that the server has not confirmed. A check is a look-up without keys
and takes 0.2 ms where one of 500 keys takes 0.05 ms from memory and 0.5 ms by the server."""

LOADS: Final = 3
"""Attempts at an image while others mark; after that the server is asked, and it begins anew."""


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
    expects: bytes = b""
    """The id of the commit whose keys are in it already, though its answer is not back."""
    in_order: bool = True
    """No generation was added to after a younger one: else it could not be dropped by itself."""

    def look_up(self, keys: Keys) -> Known:
        return Known(*self.marked.look_up(keys), as_of=self.mark)

    def add(self, commit: Commit, markers: Markers) -> None:
        """What a commit marks of what is absent."""
        generation = generation_of(commit.position)
        self.in_order &= generation >= max(self.marked.first_position, default=0)
        self.marked.insert(generation, markers.keys, markers.fingerprints)


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
        if ours is None or ours.commit_id is None:
            return self._ask(query)
        image = self._images.get(query.at)
        if image is None or not self._is_current(image, query, ours.whole_fence):
            image = self._loaded(query, space, ours.whole_fence)
        if image is None:
            return self._ask(query)
        if early and early.image is image and early.count == len(image.marked.index):
            return replace(early.known, as_of=image.mark)
        return image.look_up(query.keys)

    def look_up_early(self, image: Image | None, commit: Commit, query: Query) -> Early | None:
        """Before the answer to `commit` is read, for which `image` was taken."""
        if image is None or image.run != query.run or image.expects != commit.position.commit_id:
            return None
        return Early(image, len(image.marked.index), image.look_up(query.keys))

    def expect(self, image: Image | None, commit: Commit) -> Image | None:
        """The image with what `commit` marks, which is on its way; it is put back by `follow`."""
        markers, new = commit.markers, commit.position
        if image is None or (commit.as_of, new.run) != (image.mark, image.run):
            return image
        if markers is not None and len(markers):
            image.add(commit, markers)
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

    def forget(self, at: Partition) -> None:
        self._images.pop(at, None)

    def clear(self) -> None:
        self._images.clear()

    def _is_current(self, image: Image, query: Query, fence: bytes) -> bool:
        """Raises StoreError."""
        if image.fence != fence or image.run != query.run:
            return False
        now = time.monotonic()
        if now - image.checked >= CHECK_SECONDS:
            if self._ask(_without_keys(query)).as_of != image.mark:
                return False
            image.checked = now
        return True

    def _loaded(self, query: Query, space: Space, fence: bytes) -> Image | None:
        """A new image; None where others mark too fast. Raises StoreError."""
        self._images.pop(query.at, None)
        for _ in range(LOADS):
            image = self._load(query, space, fence)
            if image is not None:
                self._images[query.at] = image
                return image
        return None

    def _load(self, query: Query, space: Space, fence: bytes) -> Image | None:
        now = time.monotonic()
        found = self._ask(_without_keys(query))
        assert found.as_of is not None
        image = Image(query.run, fence, found.as_of, now)
        generations = self._generations.get(space.tag, b"")
        call = lookup_call(space, _without_keys(query), generations, fence)
        proof = ["EVALSHA", LOOKUP.sha, str(len(call.keys)), *call.keys, *call.args]
        for run, generation in sorted(decode_pairs(generations, space.scope)):
            if run != query.run:
                continue
            for part in self._slices(space, space.markers((run, generation)), proof, image.mark):
                if part is None:
                    return None
                _insert_absent(image.marked, generation, *part)
        return image

    def _slices(
        self, space: Space, name: str, proof: Arguments, mark: int
    ) -> Iterator[tuple[Keys, Fingerprints] | None]:
        """The markers of a generation, some of them twice; None where something changed."""
        cursor = -1
        while cursor:
            scan: Arguments = ["HSCAN", name, str(max(cursor, 0)), "COUNT", str(SLICE)]
            head, found = self._link.together(space.scope, [proof, scan], transaction=True)
            if isinstance(head, NoScriptError):
                yield None
                return
            for answer in (head, found):
                if isinstance(answer, Exception):
                    raise translated(answer) from answer
            if head[0] != b"known" or int.from_bytes(head[3], "big") != mark:
                yield None
                return
            cursor, values = found
            yield _columns(values, name)


def problem_of(link: Link, space: Space) -> str | None:
    """What keeps this user from loading, or None. Raises StoreUnavailable."""
    try:
        link.call("HSCAN", space.scope, "0")
    except StoreError as error:
        if not is_forbidden(error):
            raise
        return f"store: {error}"
    return None


def _leads_on(image: Image, commit: Commit, ours: Ownership, mark: bytes, answer: Any) -> bool:
    """Whether `image` stands, as it is left now, for the moment behind the commit."""
    new = commit.position
    match answer:
        case [b"already", bytes(now)]:  # sent to see that all is well; else the fence is another
            return image.mark == _number(now)
        case [b"applied", int(existing), bytes(generations), bytes(before)]:
            if (image.mark, image.run) != (_number(before), new.run):
                return False
            _join(image, commit, existing, mark)
            image.fence = ours.fence + new.commit_id
            return _drop(image, {g for run, g in decode_pairs(generations, "") if run == new.run})
        case _:
            return False


def _join(image: Image, commit: Commit, existing: int, mark: bytes) -> None:
    """Add what the commit has marked."""
    markers = commit.markers
    if markers is None or not len(markers):
        return
    image.checked = image.taken  # all that a check asks for, a commit of markers has met
    if existing:
        seen, _ = image.marked.look_up(markers.keys)
        markers = select(markers, ~seen)
    if len(markers):
        if image.expects != commit.position.commit_id:
            image.add(commit, markers)
        image.mark = _number(mark)


def _drop(image: Image, kept: set[int]) -> bool:
    """Forget the generations that the commit has dropped; false where they cannot be told apart."""
    if kept.issuperset(image.marked.first_position):
        return True
    image.marked.drop_below(min(kept, default=2**32))
    return image.in_order


def _insert_absent(
    marked: MarkedKeys, generation: int, keys: Keys, fingerprints: Fingerprints
) -> None:
    """HSCAN may bring a field twice, as a hash that grows moves to another table."""
    _, first = np.unique(keys.view("V16")[:, 0], return_index=True)
    first.sort()
    seen, _ = marked.look_up(keys[first])
    fresh = first[~seen]
    if len(fresh):
        marked.insert(generation, keys[fresh], fingerprints[fresh])


def _columns(values: Mapping[bytes, bytes], name: str) -> tuple[Keys, Fingerprints]:
    """Raises StoreCorrupt."""
    if not ({*map(len, values)} <= {KEY_BYTES} and {*map(len, values.values())} <= {MARKER_BYTES}):
        raise StoreCorrupt(f"the key {name} holds what effectonce never wrote")
    keys = np.frombuffer(b"".join(values), np.uint64).reshape(-1, 2)
    rows = np.frombuffer(b"".join(values.values()), np.uint8).reshape(-1, MARKER_BYTES)
    fingerprints = np.ascontiguousarray(rows[:, :4]).view(">u4")[:, 0].astype(np.uint32)
    return keys, fingerprints


def _without_keys(query: Query) -> Query:
    return replace(query, keys=NO_KEYS)


def _number(mark: bytes) -> int:
    return int.from_bytes(mark, "big")
