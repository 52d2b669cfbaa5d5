"""What a poll brought, by partition."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from effectonce.kafka import _runs

RUNS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 5)), min_size=1, max_size=12)


@given(RUNS)
def test_each_message_stands_with_its_partition_in_delivered_order(runs: list[Any]) -> None:
    homes = [home for home, length in runs for _ in range(length)]
    messages: Any = list(range(len(homes)))
    by_one: dict[str, list[int]] = {}
    for home, message in zip(homes, messages, strict=True):
        by_one.setdefault(home, []).append(message)
    assert dict(_runs(homes, messages)) == by_one
