"""`effectonce quarantine`: sets aside what cannot be read of a partition, so that it can go on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rich.console import Console

from effectonce.model import Partition
from effectonce.stores.encoding import GENERATION, OUTCOME, PACKED
from effectonce.stores.rocksdb_files import Folder
from effectonce.stores.rocksdb_options import Shared
from effectonce.stores.rocksdb_quarantine import Quarantine, quarantine

_KINDS: Final = {PACKED: "packed row", GENERATION: "start of a generation", OUTCOME: "outcome"}
_LISTED: Final = 20


def run(console: Console, root: Path, at: Partition, shared: Shared, *, yes: bool) -> int:
    """Set aside, or with `yes` false only look; the exit code. Raises StoreError."""
    found = quarantine(Folder(root, at), shared, dry_run=not yes)
    if not found.rows:
        console.print(f"{at}: every row can be read; there is nothing to set aside")
        return 0
    for line in _told(found, yes):
        console.print(line)
    if yes:
        console.print(f"{at} can begin again")
        return 0
    console.print("Nothing was changed. Say --yes to do it")
    return 1


def _told(found: Quarantine, done: bool) -> Iterator[str]:
    kinds = Counter(_KINDS[each.key[:1]] for each in found.rows)
    counts = ", ".join(f"{count:,} × {kind}" for kind, count in kinds.items())
    yield f"{'Set aside' if done else 'To be set aside'}: {counts}"
    yield from (f"  {each.why}" for each in found.rows[:_LISTED])
    if len(found.rows) > _LISTED:
        yield f"  and {len(found.rows) - _LISTED:,} more"
    if not found.keys and not found.missing:
        yield "No event runs again"
        return
    unknown = f", and those of {found.missing:,} missing rows" if found.missing else ""
    yield f"Events that may run again if they are delivered again: at most {found.keys:,}{unknown}"
    yield (
        f"Horizon: {found.horizon_before:,} -> {found.horizon:,}; a reset of the group's offset "
        "to below that can no longer be answered from markers"
    )
