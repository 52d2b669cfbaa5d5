"""Names and numbers that are none: refused at construction, or harmless."""

from __future__ import annotations

from typing import Any

import pytest

import effectonce as eo
from effectonce.stores.rocksdb import RocksDBStore
from tests.bad_input.kit import Flow, once_each, stops

TRICKS = ("../x", "..", ".", "/etc", "a/../../b", "STORE", "STORE/x", "\0", "\n", "%2e%2e", "~")


def consumer(config: dict[str, object] | None = None, topic: str = "orders") -> eo.OnceConsumer:
    usual: dict[str, Any] = {"bootstrap.servers": "127.0.0.1:1", "group.id": "g", "log_level": 0}
    once = eo.Once("memory:", identify=eo.header("event-id"), effects=eo.InStore())
    return eo.OnceConsumer({**usual, **(config or {})}, [topic], once)


@pytest.mark.parametrize("scope", TRICKS)
def test_a_scope_leaves_no_trace_outside_the_store_and_finds_its_own_again(
    flow: Flow, scope: str
) -> None:
    ids = flow.send(2)
    ran: list[str] = []
    for _ in range(2):
        flow.job(lambda event, tx: ran.append(event.id), scope=scope)
    assert ran == ids
    assert [each.name for each in flow.state.parent.iterdir()] == [flow.state.name]
    (folder,) = (each for each in flow.state.iterdir() if each.name != "STORE")
    assert [each.name for each in folder.iterdir()] == [flow.group]
    assert (flow.state / "STORE").is_file()


def test_a_scope_too_long_for_a_folder_is_told_and_loses_nothing(flow: Flow) -> None:
    ids = flow.send(2)
    with stops(eo.ConfigError, "too long for the name of a folder", "where 255 fit"):
        flow.job(scope="é" * 100)
    ran: list[str] = []
    flow.job(lambda event, tx: ran.append(event.id), scope="é" * 42)
    assert ran == ids


@pytest.mark.parametrize("topic", [".", ".."])
def test_a_topic_that_kafka_allows_no_one_is_not_told_as_a_broker_that_is_down(topic: str) -> None:
    with pytest.raises(eo.ConfigError, match="topic"):
        consumer(topic=topic)


@pytest.mark.parametrize("path", ["/tmp/a%00b", "a%00"])
def test_a_store_path_that_no_system_takes_is_refused_with_the_rest(path: str) -> None:
    with pytest.raises(eo.ConfigError) as refused:
        eo.Once(f"rocksdb:{path}", identify=eo.header(""), effects=eo.InStore())
    assert len(refused.value.problems) == 2
    assert any("NUL" in each for each in refused.value.problems)


@pytest.mark.parametrize("number", ["abc", "", None, True, -1, 6000.5, "6e3", b"6000"])
def test_times_that_are_no_whole_milliseconds_are_refused_together(number: object) -> None:
    names = ("max.poll.interval.ms", "session.timeout.ms", "heartbeat.interval.ms")
    with pytest.raises(eo.ConfigError) as refused:
        consumer({**dict.fromkeys(names, number), "auto.offset.reset": "latest"})
    assert len(refused.value.problems) == 2
    assert f"{', '.join(names)}: whole milliseconds" in refused.value.problems


def test_a_store_object_may_lie_where_the_url_cannot_say(flow: Flow) -> None:
    ids = flow.send(1)
    flow.state = flow.state.with_name("what? 100% #1")
    flow.job(store=RocksDBStore(flow.state))
    assert flow.effects() == once_each(ids)
