"""`Once.promise()` says what docs/promises.md does: a promise without its assumptions is a lie."""

from datetime import timedelta
from typing import Any

import pytest

import effectonce as eo


def promise(store: str = "rocksdb:///s", effects: Any = None, **named: Any) -> str:
    once = eo.Once(store, identify=eo.header("id"), effects=effects or eo.InStore(), **named)
    return once.promise()


@pytest.mark.parametrize(
    "assumed",
    [
        "one partition",
        "share a host",
        "the payload of an event ID does not change",
        "producers' clocks are right",
    ],
)
def test_every_assumption_of_the_page_is_listed(assumed: str) -> None:
    (assumes,) = (line for line in promise().splitlines() if line.startswith("Assumes: "))
    assert assumed in assumes


def test_a_shared_store_assumes_nothing_about_partitions_and_hosts() -> None:
    said = promise("redis://localhost")
    assert "one partition" not in said
    assert "share a host" not in said


@pytest.mark.parametrize(
    ("window", "words"),
    [
        (timedelta(days=7), "7 days,"),
        (timedelta(days=1), "1 day,"),
        (timedelta(hours=36), "36 hours,"),
        (timedelta(minutes=90), "90 minutes,"),
        (timedelta(seconds=61), "61 seconds,"),
    ],
)
def test_the_window_is_said_in_words(window: timedelta, words: str) -> None:
    assert f"within the window: {words} in log time" in promise(window=window)


@pytest.mark.parametrize(
    ("effects", "lost"),
    [(eo.InStore(), "Effects and markers"), (eo.Outside(on_doubt="repeat"), "Markers")],
)
def test_a_store_in_memory_alone_is_not_said_to_be_mended_by_the_witness(
    effects: Any, lost: str
) -> None:
    said = promise("memory:", effects)
    assert "Survives: nothing" in said
    assert f"Remains: {lost} are gone with the store's process" in said
    assert "witness" not in said
