"""The complete, exact index of one partition's keys: in memory, a batch at a time.

    key -> mix -> bucket of 16 tags -> same tag: a candidate -> key log: all 16 bytes -> position

A key's *log position* counts the keys inserted before it; it never changes and is never reused, so
older is smaller and expiry is one number, the floor. "Absent" is a proof: every key stands in its
bucket or, where that is full, in a dict beside the buckets. "Present" is one too: a tag only
nominates, the bytes in the key log decide.

A table never changes its size or its base. Growing, shrinking and clearing out are one move:
a fresh table is filled from the old one's log, a slice with every insert, while both answer:

    position   floor      cursor          until          next
                 | moved: new | not yet: old | since: new |

So no batch is held long, a row number fits 32 bits however far the positions have run, and what
gathers in a table that lives for weeks (expired, forgotten, crowded slots) goes with it.

Nothing here is stored: the index is derived from the packed rows and rebuilt at start.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import sys
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from effectonce.model import Fingerprints, Keys, Mask
from effectonce.native import native

Positions: TypeAlias = NDArray[np.int64]
Hashes: TypeAlias = NDArray[np.uint64]

SLOTS: Final = 16
"""Tags of a bucket: 32 bytes, never more than one cache line, and a size `take` has a loop for."""

KEYS_PER_BUCKET: Final = 8.8
"""How full a table may be: 0.55. Buckets then cost 11 bytes a key, 0.16% of the keys stand in the
dict, and look-up + insert in a nearly full table take 134 ns a key (3e6 keys, batches of 500).
At 0.45: 13.5 bytes, 0.03%, 125 ns; at 0.7: 8.7 bytes, 1.1%, 182 ns."""

LEAST_CAPACITY: Final = 4096
"""Where a table starts: 45 KB when empty, 127 KB when full. In fewer buckets too many keys of a
first batch meet in one slot: an insert of 500 takes 228 ns a key here, 314 in a table for 1024."""

MOVED_PER_INSERT: Final = 8
"""Keys moved into a fresh table for each one inserted. It has room for as many as move, so anything
above 1 is in time; but as long as a table fills, every look-up asks two. Over one doubling from
5e5 keys, look-up + insert of 410 take 274 ns a key with 2, 231 with 8, 217 with 16; the 99th
percentile of a batch is 0.3 to 0.5 ms with each. The last takes longer, which frees the old
buckets; the first ones would."""

FIRST_SLICES: Final = 1000
"""Keys of a slice at most, until as many have moved as the fresh table has pages: to them every
page is new, for 0.7 to 3 µs. Of 7,200 keys the first held a batch for 28 ms (2.5e6 keys there)."""

LEAST_SLICE: Final = 256
"""A slice has a fixed cost of 20 µs, so even an insert of one key moves some."""

KEY_BYTES: Final = 16
FINGERPRINT_BYTES: Final = 4
BUCKET_BYTES: Final = SLOTS * (2 + 4) + 1
SPILLED_BYTES: Final = 150
"""A dict entry with its bytes and its int: 110 to 170, as full as the dict happens to be."""

MOST_ROWS: Final = 2**32

_TOMBSTONE: Final = 2
"""The tag where a key was removed: even, so no key has it; not 0, so the slot is not free, and a
full bucket still looks full and has the dict asked."""

# Arrays without a dimension: numpy converts a Python number anew at each use, which takes 0.2 µs.
_HALF: Final = np.array(32, np.uint64)
_LOWER: Final = np.array(2**32 - 1, np.uint64)
_ODD: Final = np.array(1, np.uint16)

_TILE: Final = 1024
"""Up to this many keys, the seed is added to an array of their own shape: 2.3 µs less at 500."""


class KeyIndex:
    """16-byte keys, each with its fingerprint, and the log position at which it was inserted.

    Keys are (n, 2) arrays of u64. There are no locks: one thread at a time. `seed` must be random
    for each process and stay unknown outside it, else crafted keys could crowd a bucket (then they
    cost what a dict costs; no answer changes). `capacity` is the number of keys to make room for at
    once; `first` is the position of the first key.
    """

    def __init__(self, *, seed: int, capacity: int = LEAST_CAPACITY, first: int = 0) -> None:
        self._mix = _Mix(seed)
        self._floor = self._cursor = self._until = self._next = self._familiar = first
        self._removed: Positions = np.empty(0, np.int64)
        self._table = _Table(first, max(capacity, LEAST_CAPACITY), self._mix)
        self._old: _Table | None = None

    def __len__(self) -> int:
        """How many keys a lookup would find."""
        return self._next - self._floor - len(self._removed)

    def lookup(self, keys: Keys) -> Positions:
        """The log position of each key, or -1: it is not there. Changes nothing."""
        return self._lookup(_checked(keys))

    def marked(self, keys: Keys) -> tuple[Mask, Fingerprints]:
        """Whether each key is there, and its fingerprint, or 0."""
        keys = _checked(keys)
        alone = self._old is None and self._table.marked(keys, self._floor)
        return alone or self._marked(keys)

    def _marked(self, keys: Keys) -> tuple[Mask, Fingerprints]:
        found = self._lookup(keys)
        seen = found >= 0
        fingerprints = np.zeros(len(keys), np.uint32)
        rows = seen.nonzero()[0]
        if len(rows):
            fingerprints[rows] = self._fingerprints(found.take(rows))
        return seen, fingerprints

    def insert(self, keys: Keys, fingerprints: Fingerprints) -> int:
        """Add keys that are absent and distinct, at consecutive positions; returns the first.

        That they are absent and distinct is the caller's to know and is not checked. A key inserted
        twice counts as two, is found at one of its positions while either lasts, and `remove` may
        leave one. MemoryError: there is no room for a larger table, and nothing has changed. After
        any other exception but ValueError the index is no longer exact: build it anew.
        """
        keys = _checked(keys)
        if len(fingerprints) != len(keys):
            raise ValueError(f"{len(fingerprints)} fingerprints for {len(keys)} keys")
        first, count = self._next, len(keys)
        if first + count > self._table.base + self._table.capacity:
            while self.step(self._until - self._cursor):
                pass
            self._rebuild(count)
        self._table.put(first, keys, fingerprints)
        self._next = first + count
        self.step(max(MOVED_PER_INSERT * count, LEAST_SLICE))
        return first

    def fingerprints(self, positions: Positions) -> Fingerprints:
        """The fingerprints of the keys at these positions, which `lookup` or `insert` gave.

        Raises IndexError for a position that has expired or was never given.
        """
        if not len(positions):
            return np.empty(0, np.uint32)
        if positions.min() < self._floor or positions.max() >= self._next:
            raise IndexError(f"log positions run from {self._floor} to {self._next - 1}")
        return self._fingerprints(positions)

    def _fingerprints(self, positions: Positions) -> Fingerprints:
        found = self._table.fingerprints.take(positions - self._table.base)
        if self._old is not None:
            waiting = ((positions >= self._cursor) & (positions < self._until)).nonzero()[0]
            rows = positions.take(waiting) - self._old.base
            found[waiting] = self._old.fingerprints.take(rows)
        return found

    def drop_below(self, base: int) -> None:
        """Expire every key whose log position is below `base`, and give their memory back."""
        self._floor = max(self._floor, min(base, self._next))
        self._cursor = max(self._floor, self._cursor)
        self._removed = self._removed[self._removed.searchsorted(self._floor) :].copy()
        self._table.give_back(self._floor)
        if self._old is not None:
            self.step(0)
        else:
            self._shrink()

    def remove(self, keys: Keys) -> int:
        """Forget single keys, as if they had never been there; returns how many were."""
        keys = _checked(keys)
        found = np.unique(self._lookup(keys))
        found = found[found >= self._floor]
        self._table.remove(keys, self._floor)
        if self._old is not None:
            self._old.remove(keys, self._cursor)
        self._removed = np.insert(self._removed, self._removed.searchsorted(found), found)
        return len(found)

    def step(self, keys: int) -> bool:
        """Move up to `keys` keys into a fresh table, if one is being filled; True while it is.

        Every insert takes a step; where a partition is idle, this gives the old table back sooner.
        """
        if self._old is None:
            return False
        if self._cursor < self._familiar:
            keys = min(keys, FIRST_SLICES)
        start, stop = self._cursor, min(self._cursor + keys, self._until)
        if start < stop:
            moved, fingerprints = self._old.rows(start, stop)
            first, last = self._removed.searchsorted((start, stop))
            gone = self._removed[first:last] - start
            self._table.put(start, moved, fingerprints, gone)
            self._cursor = stop
        self._old.give_back(self._cursor)
        if self._cursor >= self._until:
            self._old = None
            self._table.give_back(self._floor)
            self._shrink()
        return self._old is not None

    def memory_bytes(self) -> int:
        """What the index occupies, to within some pages: the log of its keys, and all buckets."""
        log = (self._next - self._floor) * (KEY_BYTES + FINGERPRINT_BYTES)
        old = self._old.memory_bytes() if self._old is not None else 0
        return log + self._table.memory_bytes() + old + self._removed.nbytes

    def _lookup(self, keys: Keys) -> Positions:
        found = self._table.find(keys, self._floor)
        if self._old is not None:
            missing = (found < 0).nonzero()[0]
            found[missing] = self._old.find(keys.take(missing, axis=0), self._cursor)
        return found

    def _shrink(self) -> None:
        """Begin a smaller table if this one has become far too roomy."""
        span = self._next - self._floor
        if self._table.capacity > max(4 * span, LEAST_CAPACITY):
            self._rebuild(0)

    def _rebuild(self, more: int) -> None:
        """Begin a fresh table for twice the keys that there are and `more`."""
        span = self._next - self._floor
        fresh = _Table(self._floor, max(2 * (span + more), LEAST_CAPACITY), self._mix)
        self._old = self._table if span else None
        self._table = fresh
        self._cursor, self._until = self._floor, self._next
        self._familiar = self._floor + fresh.memory_bytes() // mmap.PAGESIZE


def _checked(keys: Keys) -> Keys:
    if keys.ndim != 2 or keys.shape[1] != 2 or keys.dtype != np.uint64:
        raise ValueError(f"keys are (n, 2) of uint64, not {keys.shape} of {keys.dtype}")
    return np.ascontiguousarray(keys)


class _Mix:
    """NH of UMAC (Black et al., 1999), then a bijection that spreads it over all 64 bits.

    Any two keys, however chosen, collide in NH with a probability of 2**-32 over the seed.
    """

    def __init__(self, seed: int) -> None:
        drawn = hashlib.blake2b(b"%d" % seed, digest_size=24, person=b"effectonce index").digest()
        self._addends = np.tile(np.frombuffer(drawn, np.uint32, 4), (_TILE, 1))
        self._multiplier = np.array(int.from_bytes(drawn[16:]) | 1, np.uint64)
        self.secret = self._addends[0].tobytes() + self._multiplier.tobytes()
        """All of it, as _native.c reads it."""

    def __call__(self, keys: Keys) -> Hashes:
        count = len(keys)
        addends = self._addends[:count] if count <= _TILE else self._addends[0]
        words = (keys.view(np.uint32) + addends).view(np.uint64)
        products = (words >> _HALF) * (words & _LOWER)
        hashes: Hashes = products[:, 0] + products[:, 1]
        hashes ^= hashes >> _HALF
        hashes *= self._multiplier
        return hashes


class _Table:
    """The keys at up to `capacity` positions from `base` on: their log, and buckets to find them.

    The log is in anonymous memory of its own: contiguous, because verifying 50 hits among 1e7 keys
    takes 2 µs by one `take`, 37 to 120 µs over a list of chunks; and yet its front can be given
    back. A temporary file in its place costs 29 instead of 11 ns a key to append to, with pauses of
    18 ms while it is written out. Small pages, because numpy's own arrays come in huge ones, and
    the first slices moved into a fresh table touch them all: 185 ms at 1e7 keys.
    """

    def __init__(self, base: int, capacity: int, mix: _Mix) -> None:
        if capacity > MOST_ROWS:
            raise MemoryError(f"a table of {capacity} keys: {MOST_ROWS} is the most")
        buckets = int(capacity / KEYS_PER_BUCKET) + 1
        self.base = base
        self.capacity = capacity
        self._mix = mix
        self._given_back = 0
        self._key_pages = _pages(capacity * KEY_BYTES)
        self._keys = np.frombuffer(self._key_pages, np.uint64).reshape(capacity, 2)
        self._fingerprint_pages = _pages(capacity * FINGERPRINT_BYTES)
        self.fingerprints = np.frombuffer(self._fingerprint_pages, np.uint32)
        self._slot_tags = np.frombuffer(_pages(buckets * SLOTS * 2), np.uint16)
        self._tags = self._slot_tags.reshape(buckets, SLOTS)
        self._rows = np.frombuffer(_pages(buckets * SLOTS * 4), np.uint32)
        self._fill = np.frombuffer(_pages(buckets), np.uint8)
        self._buckets = np.array(buckets, np.uint64)
        self._spilled: dict[bytes, int] = {}

    def find(self, keys: Keys, floor: int) -> Positions:
        """The position of each key that stands here at `floor` or above, else -1."""
        find = self._find_in_buckets if native is None else self._find_natively
        found, full = find(keys, floor)
        if self._spilled and len(full):
            raw = keys.tobytes()
            for i in full.tolist():
                position = self._spilled.get(raw[i * KEY_BYTES : (i + 1) * KEY_BYTES], -1)
                if position >= floor:
                    found[i] = position
        return found

    def marked(self, keys: Keys, floor: int) -> tuple[Mask, Fingerprints] | None:
        """Which stand here, and their fingerprints; None where the dict has a say, or without C."""
        if native is None or self._spilled:
            return None
        seen, fingerprints = native.marked(
            keys, self._mix.secret, self._slot_tags, self._rows, self._keys, self.fingerprints,
            floor - self.base,
        )  # fmt: skip
        return np.frombuffer(seen, np.bool_), np.frombuffer(fingerprints, np.uint32)

    def _find_in_buckets(self, keys: Keys, floor: int) -> tuple[Positions, NDArray[np.intp]]:
        """The positions, and the keys that may stand in the dict: their buckets are full."""
        found = np.empty(len(keys), np.int64)
        found.fill(-1)
        bucket, tags, nominated = self._nominate(self._mix(keys))
        if len(nominated):
            which, _, row = self._verify(nominated, bucket, keys, floor)
            found[which] = row + np.int64(self.base)
        return found, tags[:, -1].nonzero()[0]

    def _find_natively(self, keys: Keys, floor: int) -> tuple[Positions, NDArray[np.uint32]]:
        assert native is not None
        found, full = native.find(
            keys, self._mix.secret, self._slot_tags, self._rows, self._keys,
            floor - self.base, self.base,
        )  # fmt: skip
        return np.frombuffer(found, np.int64), np.frombuffer(full, np.uint32)

    def put(
        self,
        first: int,
        keys: Keys,
        fingerprints: Fingerprints,
        gone: Positions | None = None,
    ) -> None:
        """Log keys from position `first` on, and place all but the `gone` rows of them in buckets.

        All go to the next free slot of their buckets.
        """
        start = first - self.base
        self.fingerprints[start : start + len(keys)] = fingerprints
        if native is None or (gone is not None and len(gone)):
            self._put_in_buckets(start, keys, gone)
            return
        spilled = np.empty(len(keys) + 1, np.uint32)
        native.put(
            keys, self._mix.secret, self._slot_tags, self._rows, self._keys, self._fill,
            spilled, start,
        )  # fmt: skip
        if spilled[0]:
            self._spill(spilled[1 : 1 + int(spilled[0])])

    def _put_in_buckets(self, start: int, keys: Keys, gone: Positions | None) -> None:
        """Of those that meet in one slot one wins, whichever it is, and the others try again."""
        stop = start + len(keys)
        self._keys[start:stop] = keys
        row = np.arange(start, stop, dtype=np.uint32)
        bucket, tag = self._address(self._mix(keys))
        if gone is not None and len(gone):
            row, bucket, tag = np.delete(row, gone), np.delete(bucket, gone), np.delete(tag, gone)
        while len(row):
            fill = self._fill.take(bucket)
            full = fill == SLOTS
            if len(full.nonzero()[0]):
                self._spill(row[full])
                row, bucket, tag, fill = row[~full], bucket[~full], tag[~full], fill[~full]
            slot = bucket * SLOTS + fill
            self._rows[slot] = row
            self._fill[bucket] = fill + 1
            lost = self._rows.take(slot) != row
            if not len(lost.nonzero()[0]):
                self._slot_tags[slot] = tag
                return
            self._slot_tags[slot[~lost]] = tag[~lost]
            row, bucket, tag = row[lost], bucket[lost], tag[lost]

    def remove(self, keys: Keys, floor: int) -> None:
        """Forget these keys where they stand at `floor` or above, and wipe them from the log."""
        bucket, _, nominated = self._nominate(self._mix(keys))
        _, slot, row = self._verify(nominated, bucket, keys, floor)
        self._slot_tags[slot] = _TOMBSTONE
        self._keys[row] = 0
        for key in split(keys):
            position = self._spilled.pop(key, -1)
            if position >= floor:
                self._keys[position - self.base] = 0

    def rows(self, start: int, stop: int) -> tuple[Keys, Fingerprints]:
        """What was logged at positions `start` to `stop`; removed keys are zeros."""
        rows = slice(start - self.base, stop - self.base)
        return self._keys[rows], self.fingerprints[rows]

    def give_back(self, floor: int) -> None:
        """Return the log below `floor` to the system, page by page; nobody reads it again."""
        first, last = self._given_back, floor - self.base
        _give_back(self._key_pages, first * KEY_BYTES, last * KEY_BYTES)
        _give_back(self._fingerprint_pages, first * FINGERPRINT_BYTES, last * FINGERPRINT_BYTES)
        self._given_back = last

    def memory_bytes(self) -> int:
        """Of the buckets; the log is the index's to count."""
        return len(self._fill) * BUCKET_BYTES + len(self._spilled) * SPILLED_BYTES

    def _address(self, hashes: Hashes) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
        """Bucket from the upper half of the hash, tag from the lower; no key has an even tag."""
        bucket = ((hashes >> _HALF) * self._buckets) >> _HALF
        return bucket.view(np.int64), hashes.astype(np.uint16) | _ODD

    def _nominate(
        self, hashes: Hashes
    ) -> tuple[NDArray[np.int64], NDArray[np.uint16], NDArray[np.intp]]:
        """Each key's bucket, the tags in it, and which of all those tags are the key's own."""
        bucket, tag = self._address(hashes)
        tags = self._tags.take(bucket, axis=0)
        return bucket, tags, (tags == tag[:, None]).reshape(-1).nonzero()[0]

    def _verify(
        self, nominated: NDArray[np.intp], bucket: NDArray[np.int64], keys: Keys, floor: int
    ) -> tuple[NDArray[np.intp], NDArray[np.int64], NDArray[np.uint32]]:
        """Of the nominated those that stand for the very key: which key, its slot and its row."""
        which = nominated // SLOTS
        slot = bucket.take(which) * SLOTS + nominated % SLOTS
        row = self._rows.take(slot)
        same = self._keys.take(row, axis=0) == keys.take(which, axis=0)
        proved = (same[:, 0] & same[:, 1] & (row >= floor - self.base)).nonzero()[0]
        return which.take(proved), slot.take(proved), row.take(proved)

    def _spill(self, rows: NDArray[np.uint32]) -> None:
        """Keep what finds its bucket full in the dict, where crowding does no harm."""
        keys = split(self._keys.take(rows, axis=0))
        self._spilled.update(zip(keys, (rows + np.int64(self.base)).tolist(), strict=True))


def split(keys: Keys) -> list[bytes]:
    """The keys, 16 bytes each."""
    raw = keys.tobytes()
    return [raw[i : i + KEY_BYTES] for i in range(0, len(raw), KEY_BYTES)]


def _pages(size: int) -> mmap.mmap:
    """Zeroed memory that nothing else shares, in small pages that cost nothing until touched."""
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no {size} bytes for an index of keys") from error
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a kernel without huge pages takes no advice on them
            pages.madvise(mmap.MADV_NOHUGEPAGE)
    return pages


def _give_back(pages: mmap.mmap, start: int, stop: int) -> None:
    """Free what lies between these bytes, in whole pages, and from the last call's page on."""
    start = start // mmap.PAGESIZE * mmap.PAGESIZE
    stop = stop // mmap.PAGESIZE * mmap.PAGESIZE
    if start < stop:
        with contextlib.suppress(OSError):  # refused for locked memory, which stays
            pages.madvise(mmap.MADV_DONTNEED, start, stop - start)
