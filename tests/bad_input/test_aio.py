"""What the async consumer refuses before anything is consumed: all at once, with what to change."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import ssl
from collections.abc import Mapping
from typing import Any

import pytest

import effectonce as eo
from effectonce.handlers_aio import check_async_handler
from effectonce.settings_aio import admin_settings_of, aiokafka_settings
from effectonce.stores.redis_aio import AsyncRedisStore
from effectonce.stores.threaded import InThread
from tests.bad_input.kit import stops

GOOD: Mapping[str, Any] = {"bootstrap_servers": "127.0.0.1:9", "group_id": "g"}


def once(store: str = "memory:", **policy: Any) -> eo.Once:
    usual = {"identify": eo.header("event-id"), "effects": eo.Outside(on_doubt="repeat")}
    return eo.Once(store, **{**usual, **policy})


def consumer(*topics: str, **settings: Any) -> eo.AsyncOnceConsumer:
    return eo.AsyncOnceConsumer(*(topics or ("topic",)), **{"once": once(), **GOOD, **settings})


def test_every_problem_is_said_at_once_or_mending_takes_a_start_each() -> None:
    with stops(
        eo.ConfigError,
        "bootstrap_servers: missing",
        "group_id: missing",
        "auto_offset_reset='latest': must stay 'none'",
        "enable_auto_commit=True: must stay False",
        "isolation_level='read_uncommitted': must stay 'read_committed'",
        "fetch_max_byte: aiokafka has no such setting",
        "heartbeat_interval_ms=3000: at most a third of session_timeout_ms=6000",
        "topic 'no such': a name",
        "index is an option of the sync store",
    ):
        eo.AsyncOnceConsumer(
            "no such",
            once=once("redis://127.0.0.1:9/0?index=local&layout=partition"),
            auto_offset_reset="latest",
            enable_auto_commit=True,
            isolation_level="read_uncommitted",
            fetch_max_byte=1,
            session_timeout_ms=6000,
            heartbeat_interval_ms=3000,
        )


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("value_deserializer", bytes.decode, "decode them in the handler"),
        ("max_poll_interval_ms", 1000, "handler_timeout_seconds"),
        ("max_poll_records", 10, "Limits(batch=)"),
        ("consumer_timeout_ms", 1, "until=effectonce.END"),
        ("session_timeout_ms", "6 s", "whole milliseconds"),
        ("ssl_context", ssl.create_default_context(), 'admin={"ssl.ca.location": ...}'),
        ("admin", "ssl", "confluent-kafka's settings by name"),
        ("once", "memory:", "an effectonce.Once"),
    ],
)
def test_a_setting_that_would_break_the_promise_is_refused_with_advice(
    name: str, value: object, advice: str
) -> None:
    with stops(eo.ConfigError, advice):
        consumer(**{name: value})


def test_a_store_that_waits_for_replicas_is_the_sync_consumers_alone() -> None:
    with stops(eo.ConfigError, "replicas and wait_aof are options of the sync store"):
        consumer(once=once("redis://127.0.0.1:9/0?replicas=1"))


def test_without_aiokafka_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "effectonce.settings_aio.find_spec", lambda name: None if name == "aiokafka" else real(name)
    )
    with stops(eo.ConfigError, 'pip install "effectonce[aiokafka]"'):
        consumer()


def test_what_is_ours_is_always_given_and_what_the_admin_needs_is_translated() -> None:
    given = {**GOOD, "security_protocol": "SASL_SSL", "sasl_mechanism": "SCRAM-SHA-256",
             "sasl_plain_username": "u", "sasl_plain_password": "p"}  # fmt: skip
    settings = aiokafka_settings(given)
    assert (settings["auto_offset_reset"], settings["enable_auto_commit"]) == ("none", False)
    assert settings["isolation_level"] == "read_committed"
    assert admin_settings_of({**given, "bootstrap_servers": ["a:1", "b:2"]}, {"x": "y"}) == {
        "bootstrap.servers": "a:1,b:2",
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-256",
        "sasl.username": "u",
        "sasl.password": "p",
        "x": "y",
    }


def test_each_url_has_its_async_store_and_only_a_store_that_was_given_stays_open() -> None:
    store, ours = once("redis://127.0.0.1:9/0").async_store()
    assert (type(store), ours) == (AsyncRedisStore, True)
    for url in ("memory:", "rocksdb:///nowhere"):
        store, ours = once(url).async_store()
        assert (type(store), ours) == (InThread, True)
    given = AsyncRedisStore("redis://127.0.0.1:9/0")
    assert once(given).async_store() == (given, False)  # type: ignore[arg-type]


# -- handlers --------------------------------------------------------------------------------------


async def awaited(event: eo.Event) -> None: ...


class Object:
    async def __call__(self, event: eo.Event) -> None: ...


def run(handler: Any) -> None:
    async def main() -> None:
        async with consumer() as ours:
            await ours.run(handler)

    asyncio.run(main())


@pytest.mark.parametrize("handler", [print, lambda event: None])
def test_a_plain_function_is_refused_or_its_coroutine_would_never_run(handler: Any) -> None:
    with stops(eo.ConfigError, "a plain function"):
        run(handler)


def test_a_handler_of_the_wrong_shape_is_refused() -> None:
    async def two(event: eo.Event, tx: object) -> None: ...

    with stops(eo.ConfigError, "is called with (event)"):
        run(two)
    with stops(eo.ConfigError, "must be callable"):
        run("handler")


@pytest.mark.parametrize("handler", [awaited, functools.partial(awaited), Object()])
def test_whatever_can_be_awaited_is_a_handler(handler: Any) -> None:
    check_async_handler(handler, "event", in_store=False)
