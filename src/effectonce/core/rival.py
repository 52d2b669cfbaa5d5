"""Whether somebody else opens a partition as fast as we do.

| our openings of it                           | means                                          |
| -------------------------------------------- | ---------------------------------------------- |
| the epoch is the one after our last          | nobody else was there                          |
| it is higher                                 | somebody else opened it in between             |
| our last one is not known (no answer)        | nothing: the one in between may have been ours |
| RIVALS of the second kind within a minute    | a rival: each of us fences the other for ever  |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

RIVALS: Final = 10
RIVAL_SECONDS: Final = 60.0
"""So many openings by others within this are no accident; a zombie opens once as it awakes."""

NOT_KNOWN: Final = 0
"""In place of our last epoch; none is handed out below 1."""


def opened_between(ours: int, epoch: int) -> bool:
    """Whether somebody else opened it between our last opening and the one that gave `epoch`."""
    return ours != NOT_KNOWN and epoch > ours + 1


def is_rival(openings: Sequence[float]) -> bool:
    """`openings`: when each such opening was found, in seconds; the last `RIVALS` count."""
    last = list(openings)[-RIVALS:]
    return len(last) == RIVALS and last[-1] - last[0] < RIVAL_SECONDS
