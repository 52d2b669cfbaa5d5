"""The sweep between two polls does not keep the collector from the old generations."""

from __future__ import annotations

import gc
import weakref
from collections import deque
from collections.abc import Iterator

import pytest

import effectonce as eo
from effectonce.stores.memory import MemoryStore
from tests.unit.lone import Log, LogClient, consumer_of

EVENTS = 300


class Node:
    """Garbage that only the collector frees, as any object with a link to its parent."""

    def __init__(self) -> None:
        self.parts = [[self] for _ in range(100)]


@pytest.fixture
def eager_collector() -> Iterator[None]:
    """One that has nothing old to walk, and looks at what is old after every second young one."""
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.collect()
    gc.set_threshold(2000, 1, 1)
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


@pytest.mark.usefixtures("eager_collector")
def test_garbage_that_outlived_a_sweep_is_freed_or_memory_grows_for_ever() -> None:
    """Two records a poll: a sweep at each would start the collector's count anew, for ever."""
    log = Log({offset: f"id-{offset}" for offset in range(EVENTS)})
    alive: weakref.WeakSet[Node] = weakref.WeakSet()
    recent: deque[Node] = deque(maxlen=10)  # a cache of the user's: what falls out of it is old
    most = 0

    def handler(event: eo.Event, tx: eo.KeyValueTx) -> None:
        nonlocal most
        node = Node()
        alive.add(node)
        recent.append(node)
        most = max(most, len(alive))

    with consumer_of(LogClient(log), MemoryStore()) as consumer:
        consumer.run(handler, until=eo.END)
    assert most < EVENTS
