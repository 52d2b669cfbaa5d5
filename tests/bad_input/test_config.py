"""A configuration that cannot keep its promise is refused whole, before anything is touched."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import effectonce as eo
from effectonce.ports import Traits
from effectonce.stores.memory import MemoryStore

PASSWORD = "hunter2"


def once(**policy: Any) -> eo.Once:
    usual: dict[str, Any] = {
        "store": "memory:",
        "identify": eo.header("event-id"),
        "effects": eo.InStore(),
    }
    return eo.Once(**{**usual, **policy})


def consumer(
    config: object = None, topics: object = ("orders",), policy: object = None
) -> eo.OnceConsumer:
    usual = {"bootstrap.servers": "127.0.0.1:1", "group.id": "billing", "log_level": 0}
    settings: Any = {**usual, **config} if isinstance(config, Mapping) else config or usual
    given: Any = topics, policy or once()
    return eo.OnceConsumer(settings, *given)


def problems(refused: pytest.ExceptionInfo[eo.ConfigError]) -> str:
    return "\n".join(refused.value.problems)


# -- Once ------------------------------------------------------------------------------------------

BAD_POLICIES: Mapping[str, tuple[Mapping[str, object], str]] = {
    "effects: no answer": ({"effects": None}, "say where the effect lives"),
    "effects: text": ({"effects": "in-store"}, "say where the effect lives"),
    "effects: the class": ({"effects": eo.InStore}, "say where the effect lives"),
    "effects: not built yet": ({"effects": eo.Outside("park")}, 'on_doubt="repeat"'),  # type: ignore[arg-type]
    "identify: text": ({"identify": "event-id"}, 'effectonce.header("event-id")'),
    "identify: the function": ({"identify": eo.header}, "say where the event ID comes from"),
    "identify: joined text": ({"identify": eo.joined(eo.header("a"), "b")}, "'b' is no source"),  # type: ignore[arg-type]
    "identify: joined nothing": ({"identify": eo.joined()}, "joins two sources or more"),
    "identify: no name": ({"identify": eo.header("")}, "the name is empty, or no text"),
    "identify: bytes": ({"identify": eo.header(b"x")}, "the name is empty, or no text"),  # type: ignore[arg-type]
    "identify: no path": ({"identify": eo.field("][")}, "not a jmespath expression"),
    "identify: a constant": ({"identify": eo.field("`1`")}, "even in an empty document"),
    "identify: no function": ({"identify": eo.custom(5, version="1")}, "cannot be called"),  # type: ignore[arg-type]
    "identify: no version": ({"identify": eo.custom(str, version="")}, "needs a version="),
    "identify: a number for a version": (
        {"identify": eo.custom(str, version=1)},  # type: ignore[arg-type]
        "version= of text",
    ),
    "identify: a path of a number": (
        {"identify": eo.payload_hash(without=[5])},  # type: ignore[list-item]
        "separated by dots",
    ),
    "identify: a hash behind": (
        {"identify": eo.header("a") | eo.payload_hash()},
        "stands behind another source",
    ),
    "identify: replaces text": ({"identify": eo.header("a").replaces("b")}, "'b' is no source"),  # type: ignore[arg-type]
    "secret: guessed": ({"secret": b"short"}, "16 to 64 random bytes"),
    "secret: too long": ({"secret": b"x" * 65}, "16 to 64 random bytes"),
    "secret: text": ({"secret": "x" * 32}, "16 to 64 random bytes"),
    "window: too short": ({"window": timedelta(seconds=9)}, "window="),
    "window: beyond its column": ({"window": timedelta.max}, "window="),
    "window: a number": ({"window": 7}, "a timedelta from"),
    "retry: none": ({"retry": eo.Retry(attempts=0)}, "at least 1, the first run counts"),
    "retry: text": ({"retry": eo.Retry(attempts="5")}, "attempts='5'"),  # type: ignore[arg-type]
    "retry: a number": ({"retry": 5}, "retry=5"),
    "retry: seconds": ({"retry": eo.Retry(wait_initial=1)}, "needs timedeltas"),  # type: ignore[arg-type]
    "retry: backwards": ({"retry": eo.Retry(wait_max=timedelta(0))}, "wait_initial <= wait_max"),
    "retry: jitter": ({"retry": eo.Retry(jitter=float("nan"))}, "from 0 to 1"),
    "limits: a number": ({"limits": 500}, "limits=500"),
    "limits: too many": ({"limits": eo.Limits(batch=65_536)}, "from 1 to 65535"),
    "limits: held": ({"limits": eo.Limits(held=0)}, "Limits(held=0): from 1 to 65535"),
    "limits: half": ({"limits": eo.Limits(batch=2.5)}, "from 1 to 65535"),  # type: ignore[arg-type]
    "limits: text": ({"limits": eo.Limits(drain_seconds="5")}, "drain_seconds='5'"),  # type: ignore[arg-type]
    "limits: no time": ({"limits": eo.Limits(handler_timeout_seconds=0)}, "above 0"),
    "scope: empty": ({"scope": ""}, "1 to 200 bytes"),
    "scope: too long": ({"scope": "é" * 101}, "1 to 200 bytes"),
    "scope: bytes": ({"scope": b"payments"}, "1 to 200 bytes"),
    "scope: half a surrogate": ({"scope": "\ud800"}, "1 to 200 bytes"),
    "start": ({"start": "beginning"}, "one of 'earliest', 'latest'"),
    "on_reset": ({"on_reset": "panic"}, "one of 'refuse', 'dedupe', 'reprocess', 'skip'"),
    "moved": ({"moved": True}, "one of 'refuse', 'accept'"),
    "gap": ({"gap": None}, "one of 'refuse', 'accept'"),
    "on_unidentified": ({"on_unidentified": "skip"}, "one of 'raise', 'process'"),
    "store: unknown": ({"store": f"cassandra://me:{PASSWORD}@db/app"}, "'cassandra' is unknown"),
    "store: no URL": ({"store": f"http://me:{PASSWORD}@[db"}, "store: not a URL"),
    "store: a path": ({"store": "/var/lib/app"}, "it has no scheme"),
    "store: no folder": ({"store": "rocksdb:///"}, "needs a folder"),
    "store: a host": ({"store": "rocksdb://var/lib"}, "takes no host"),
    "store: an option": ({"store": "rocksdb:///x?fsync=true"}, "there is sync"),
    "store: an object": ({"store": Path("/var/lib/app")}, "a URL or a Store"),
}


@pytest.mark.parametrize("case", BAD_POLICIES)
def test_a_bad_policy_is_refused_with_what_to_change(case: str) -> None:
    policy, says = BAD_POLICIES[case]
    with pytest.raises(eo.ConfigError) as refused:
        once(**policy)
    assert len(refused.value.problems) == 1
    assert says in problems(refused)
    assert PASSWORD not in str(refused.value)


NOTHING_RIGHT: Mapping[str, object] = {
    "store": "cassandra://db",
    "identify": "event-id",
    "effects": None,
    "scope": "",
    "window": 7,
    "retry": 5,
    "limits": eo.Limits(batch=0),
    "secret": "text",
    "start": "?",
    "on_reset": "?",
    "moved": "?",
    "gap": "?",
    "on_unidentified": "?",
}


def test_no_problem_of_a_policy_hides_behind_another() -> None:
    with pytest.raises(eo.ConfigError) as refused:
        once(**NOTHING_RIGHT)
    assert len(refused.value.problems) == len(NOTHING_RIGHT)
    assert str(refused.value).startswith("13 problems in the configuration:\n  - ")


def test_in_store_effects_are_refused_where_the_store_holds_none() -> None:
    class Markers(MemoryStore):
        traits = Traits(
            name="markers",
            reach=MemoryStore.traits.reach,
            durability=MemoryStore.traits.durability,
            in_store_effects=False,
        )

    with pytest.raises(eo.ConfigError, match="the markers store holds no effects of yours"):
        once(store=Markers())


# -- OnceConsumer ----------------------------------------------------------------------------------

BAD_SETTINGS: Mapping[str, tuple[Mapping[object, object], str]] = {
    "latest": ({"auto.offset.reset": "latest"}, 'Once(start="earliest" | "latest")'),
    "latest, by a back door": (
        {"default.topic.config": {"auto.offset.reset": "latest"}},
        "overrides what must stay",
    ),
    "auto commit": ({"enable.auto.commit": True}, "committed together with their markers"),
    "auto store": ({"enable.auto.offset.store": "true"}, "committed together with their markers"),
    "uncommitted": ({"isolation.level": "read_uncommitted"}, "must stay read_committed"),
    "eof": ({"enable.partition.eof": True}, "until=effectonce.END"),
    "no group": ({"group.id": ""}, "group.id: missing"),
    "no broker": ({"bootstrap.servers": None}, "bootstrap.servers: missing"),
    "heartbeat": ({"heartbeat.interval.ms": 15_001}, "at most a third of session.timeout.ms=45000"),
    "session": ({"session.timeout.ms": "soon"}, "session.timeout.ms: whole milliseconds"),
    "poll": ({"max.poll.interval.ms": 1000}, "at least session.timeout.ms=45000"),
    "assignors": (
        {"partition.assignment.strategy": "range,cooperative-sticky"},
        "cannot be mixed",
    ),
    "on_commit": ({"on_commit": "log"}, "must be callable"),
    "librdkafka's: a name": ({"acks": "sometimes"}, "librdkafka: "),
    "librdkafka's: a value": ({"security.protocol": "secret"}, "security.protocol"),
    "librdkafka's: beside a password": (
        {
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "SHOUTING",
            "sasl.password": PASSWORD,
        },
        "SHOUTING",
    ),
    "librdkafka's: a callback": ({"error_cb": 5}, "error_cb"),
    "librdkafka's: not text": ({5: 5}, "librdkafka: "),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_a_bad_setting_is_refused_with_what_to_change(case: str) -> None:
    settings, says = BAD_SETTINGS[case]
    with pytest.raises(eo.ConfigError) as refused:
        consumer(settings)
    assert len(refused.value.problems) == 1
    assert says in problems(refused)
    assert PASSWORD not in str(refused.value)


@pytest.mark.parametrize("topics", ["orders", [], None, [5], [""], ["^orders.*"], ["a b"], {"x"}])
def test_topics_that_are_no_list_of_names_are_refused(topics: object) -> None:
    with pytest.raises(eo.ConfigError, match="topic"):
        consumer(topics=topics)


def test_no_problem_of_a_consumer_hides_behind_another() -> None:
    with pytest.raises(eo.ConfigError) as refused:
        consumer(
            {
                "bootstrap.servers": "",
                "group.id": "",
                "auto.offset.reset": "latest",
                "enable.auto.commit": True,
                "isolation.level": "read_uncommitted",
                "heartbeat.interval.ms": 40_000,
                "partition.assignment.strategy": "cooperative-sticky,range",
            },
            topics="orders",
            policy="rocksdb:///var/lib/app",
        )
    assert len(refused.value.problems) == 9


def test_what_kip_848_leaves_to_the_broker_is_named_at_once() -> None:
    with pytest.raises(eo.ConfigError) as refused:
        consumer(
            {
                "group.protocol": "consumer",
                "session.timeout.ms": 6000,
                "heartbeat.interval.ms": 2000,
                "partition.assignment.strategy": "range",
            }
        )
    assert len(refused.value.problems) == 3


def test_settings_that_are_none_are_refused() -> None:
    with pytest.raises(eo.ConfigError, match="settings by name, not list"):
        consumer([("group.id", "billing")])


def test_a_refusal_has_made_no_store(tmp_path: Path) -> None:
    with pytest.raises(eo.ConfigError):
        consumer({"group.id": ""}, policy=once(store=f"rocksdb://{tmp_path}/state"))
    assert list(tmp_path.iterdir()) == []


def test_a_setting_that_says_what_must_be_is_taken() -> None:
    consumer({"enable.auto.commit": "false", "isolation.level": "READ_COMMITTED"}).close()


# -- handlers --------------------------------------------------------------------------------------


class Calls:
    async def __call__(self, event: eo.Event, tx: eo.KeyValueTx) -> None: ...


async def coroutine(event: eo.Event, tx: eo.KeyValueTx) -> None: ...


async def async_generator(event: eo.Event, tx: eo.KeyValueTx) -> object:
    yield


def generator(event: eo.Event, tx: eo.KeyValueTx) -> object:
    yield


BAD_HANDLERS: Mapping[str, tuple[object, str]] = {
    "none": (None, "handler=None: must be callable"),
    "text": ("charge", "must be callable"),
    "coroutine": (coroutine, "runs nothing"),
    "async object": (Calls(), "runs nothing"),
    "generator": (generator, "runs nothing"),
    "async generator": (async_generator, "runs nothing"),
    "no tx": (lambda event: None, r"is called with \(event, tx\)"),
    "too many": (lambda event, tx, more: None, r"is called with \(event, tx\)"),
}


@pytest.mark.parametrize("case", BAD_HANDLERS)
def test_a_handler_that_could_never_work_is_refused_before_an_event_is_taken(case: str) -> None:
    handler, says = BAD_HANDLERS[case]
    given: Any = handler
    with consumer() as mine:
        for run in (mine.run, mine.run_batches):
            with pytest.raises(eo.ConfigError, match=says.replace("event", "(event|batch)", 1)):
                run(given)


@pytest.mark.parametrize("size", [0, 65_536, "many", 2.5])
def test_a_size_that_no_batch_can_have_is_refused(size: Any) -> None:
    with consumer() as mine, pytest.raises(eo.ConfigError, match="from 1 to 65535"):
        mine.run_batches(lambda batch, tx: None, size=size)


def test_an_end_that_is_none_is_not_waited_for_in_vain() -> None:
    until: Any = "end"
    with consumer() as mine, pytest.raises(eo.ConfigError, match=r"effectonce\.END"):
        mine.run(lambda event, tx: None, until=until)
