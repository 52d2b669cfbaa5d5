"""The way out when rows cannot be read: a person sets them aside, and the partition begins again.

| row                               | what is done                     | what is lost              |
| --------------------------------- | -------------------------------- | ------------------------- |
| packed row, unreadable            | moved behind `0F`                | its keys may run again    |
| packed row, missing               | its number goes behind `0F`      | its keys may run again    |
| outcome                           | moved behind `0F`                | the answer to its repeats |
| where a generation begins         | moved behind `0F`, written anew  | nothing                   |
| position, a kind of row not known | nothing: StoreCorrupt            |                           |

Nothing in an unreadable row is believed, its offsets neither. So the horizon rises to the position:
below it markers may be gone, and what is above runs again and is marked again. A generation written
anew begins there too, which lets the horizon rise early, never late.

All of it is one write under the LOCK and a new epoch: whoever owned the partition before is stale.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from rocksdict import Rdict, WriteBatch, WriteOptions

from effectonce.errors import StoreCorrupt, StoreLocked
from effectonce.model import GenerationStart
from effectonce.stores.encoding import (
    GENERATION,
    OUTCOME,
    PACKED,
    POSITION_KEY,
    SET_ASIDE,
    PositionRow,
    describe,
    encode_generation,
    encode_position,
    most_keys,
    packed_key,
)
from effectonce.stores.rocksdb_files import Folder, failure, holds_lock
from effectonce.stores.rocksdb_image import load
from effectonce.stores.rocksdb_options import Shared, open_database
from effectonce.stores.rocksdb_view import Unreadable, View, read, unreadable_outcomes

_NO_HELP: Final = (
    "To set rows aside does not help, and nothing was changed. Put back a copy of the folder made "
    "while it was closed. Without one, stop the group, move the folder away and set the group's "
    "offset of this partition with Kafka's own tool: it then begins there, without markers"
)


@dataclass(frozen=True, slots=True)
class Quarantine:
    """What is set aside, or would be."""

    rows: tuple[Unreadable, ...]
    starts: tuple[tuple[GenerationStart, int], ...]
    """Generations whose start is written anew, and the number of their first packed row."""
    keys: int
    """How many keys may run again: at most, by the length of their rows."""
    missing: int
    """Packed rows of which not even the length is known."""
    horizon_before: int
    row: PositionRow
    """As it is written: a new epoch, and the horizon that rose."""

    @property
    def horizon(self) -> int:
        """Below it, markers may be gone."""
        return self.row.position.horizon


def quarantine(folder: Folder, shared: Shared, *, dry_run: bool) -> Quarantine:
    """Set every unreadable row of a partition aside, unless `dry_run`.

    Raises StoreLocked while anybody owns the partition, and StoreCorrupt where this cannot help.
    """
    try:
        db = open_database(folder.path, shared)
        try:
            return _quarantine(db, dry_run)
        finally:
            db.close()
    except StoreCorrupt as error:
        raise StoreCorrupt(f"{folder.at}: {error}") from error
    except Exception as error:
        if holds_lock(error):
            what = f"{folder.at} is held by {folder.owner()}: stop it first. Nothing was changed"
            raise StoreLocked(what) from error
        problem = failure(error, folder.at, folder.path)
        if isinstance(problem, StoreCorrupt):
            problem = StoreCorrupt(f"{folder.at}: {error}. {_NO_HELP}")
        raise problem from error


def _quarantine(db: Rdict, dry_run: bool) -> Quarantine:
    view = read(db)
    view.unreadable += unreadable_outcomes(db)
    found = plan(view)
    if found.rows and not dry_run:
        db.write(_batch(found), _synced())
        load(db)  # as the next owner does: if it still cannot, say so now
    return found


def plan(view: View) -> Quarantine:
    """What to set aside of a database. Raises StoreCorrupt where that does not help."""
    for each in view.unreadable:
        if each.key[:1] not in (PACKED, GENERATION, OUTCOME):
            raise StoreCorrupt(f"{each.why}. {_NO_HELP}")
    row = view.row
    if row is None:
        raise StoreCorrupt(f"there is no position. {_NO_HELP}")
    keys = (_key_of(view, row, seq) for gap in view.missing for seq in gap)
    missing = [Unreadable(key, f"{describe(key)} is missing") for key in keys]
    packed = [each for each in view.unreadable if each.key.startswith(PACKED)]
    before = row.position.horizon
    horizon = max(before, row.position.next) if packed or missing else before
    return Quarantine(
        rows=(*view.unreadable, *missing),
        starts=tuple(_starts_anew(view, row)),
        keys=sum(most_keys(each.value) for each in packed),
        missing=len(missing),
        horizon_before=before,
        row=replace(
            row,
            position=replace(row.position, epoch=row.position.epoch + 1, horizon=horizon),
            incarnation=os.urandom(8),
        ),
    )


def _key_of(view: View, row: PositionRow, seq: int) -> bytes:
    """The key that a missing packed row had: in the generation whose numbers reach furthest."""
    begun = ((first, generation) for generation, first in view.first_seqs.items() if first <= seq)
    _, generation = max(begun, default=(0, row.position.floor))
    return packed_key(generation, seq)


def _starts_anew(view: View, row: PositionRow) -> Iterator[tuple[GenerationStart, int]]:
    for generation, first_seq in view.first_seqs.items():
        if generation not in view.starts and generation in view.markers:
            at = row.position
            # where it began is lost: as early, and its elders' markers reach as far, as can be
            until = max(at.next, at.marked_until)
            yield GenerationStart(generation, 0, until, at.log_time_ms, at.next), first_seq


def _batch(found: Quarantine) -> WriteBatch:
    batch = WriteBatch(raw_mode=True)
    for each in found.rows:
        batch.put(SET_ASIDE + each.key, each.value)
        batch.delete(each.key)
    for start, first_seq in found.starts:
        batch.put(*encode_generation(start, first_seq))
    batch.put(POSITION_KEY, encode_position(found.row))
    return batch


def _synced() -> WriteOptions:
    options = WriteOptions()
    options.sync = True
    return options
