"""What a round leaves, as flat keys of the report: a median, and the least and the greatest."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

Rounds: TypeAlias = dict[str, list[float]]
"""Name -> one figure a round, in the order of the rounds."""

LEAST: Final = "_least"
GREATEST: Final = "_greatest"


def spread(key: str, values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Three keys for one figure."""
    return {
        key: round(statistics.median(values), digits),
        key + LEAST: round(min(values), digits),
        key + GREATEST: round(max(values), digits),
    }


def spreads(rounds: Mapping[str, Sequence[float]], digits: int = 4) -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, values in rounds.items():
        flat |= spread(key, values, digits)
    return flat
