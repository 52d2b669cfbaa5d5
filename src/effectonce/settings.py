"""The user's settings for confluent-kafka: what in them would break the promise, and what is added.

Whatever they say, librdkafka is given `OURS`: positions move only by a commit of ours, and what an
aborted transaction wrote takes no effect.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from effectonce.once import Once

__all__ = [
    "admin_settings",
    "config_problems",
    "consumer_settings",
    "is_incremental",
    "leaves_by_unsubscribing",
    "once_problems",
    "topic_problems",
]

OURS: Final[Mapping[str, object]] = {
    "auto.offset.reset": "error",
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "enable.partition.eof": False,
    "isolation.level": "read_committed",
}

_ADVICE: Final = {
    "auto.offset.reset": 'where a new group begins is Once(start="earliest" | "latest")',
    "enable.auto.commit": "positions are committed together with their markers",
    "enable.auto.offset.store": "positions are committed together with their markers",
    "enable.partition.eof": "use run(..., until=effectonce.END)",
    "isolation.level": "aborted transactions must not take effect",
}

_OVERRIDES: Final = "default.topic.config"
"""Its `auto.offset.reset` wins over ours (librdkafka 2.16, seen)."""

_MILLISECONDS: Final = {
    "max.poll.interval.ms": 300_000,
    "session.timeout.ms": 45_000,
    "heartbeat.interval.ms": 3_000,
}
"""librdkafka's defaults."""

_BROKERS_OWN: Final = (
    "session.timeout.ms",
    "heartbeat.interval.ms",
    "partition.assignment.strategy",
)
"""With KIP-848 these are the broker's; librdkafka refuses them one at a time."""

_CONSUMER_ONLY: Final = (
    "group.", "partition.assignment.", "session.", "heartbeat.", "max.poll.", "auto.", "enable.",
    "isolation.", "fetch.", "queued.", "max.partition.", "check.crcs", "coordinator.",
    "on_commit", "consume.", "offset.",
)  # fmt: skip

_TOPIC: Final = re.compile(r"(?!\.{1,2}$)[a-zA-Z0-9._-]{1,249}")
"""As Kafka has it: "." and ".." are names for folders."""


# -- what is refused -------------------------------------------------------------------------------


def config_problems(config: object) -> Iterator[str]:
    """What in a user's consumer configuration would break the promise."""
    if not isinstance(config, Mapping):
        yield f"config: confluent-kafka's settings by name, not {type(config).__name__}"
        return
    for name in ("bootstrap.servers", "group.id"):
        if not config.get(name):
            yield f"{name}: missing"
    for name, ours in OURS.items():
        if name in config and _text(config[name]) != _text(ours):
            yield f"{name}={config[name]!r}: must stay {_text(ours)}; {_ADVICE[name]}"
    if _OVERRIDES in config:
        yield f"{_OVERRIDES}: overrides what must stay; give its settings beside the others"
    if "on_commit" in config and not callable(config["on_commit"]):
        yield f"on_commit={config['on_commit']!r}: must be callable"
    yield from _group_problems(config)


def _group_problems(config: Mapping[str, object]) -> Iterator[str]:
    wrong = [name for name in _MILLISECONDS if not str(config.get(name, 0)).isdecimal()]
    if wrong:
        yield f"{', '.join(wrong)}: whole milliseconds"
    if _is_broker_led(config):
        for name in _BROKERS_OWN:
            if name in config:
                yield f"{name}: with group.protocol=consumer (KIP-848) the broker decides it"
        return
    if not wrong:
        yield from _timing_problems(config)
    strategies = _strategies(config)
    if "cooperative-sticky" in strategies and len(strategies) > 1:
        yield "partition.assignment.strategy: cooperative-sticky cannot be mixed with eager ones"


def _timing_problems(config: Mapping[str, object]) -> Iterator[str]:
    poll, session, heartbeat = (
        int(str(config.get(name, ms))) for name, ms in _MILLISECONDS.items()
    )
    if "heartbeat.interval.ms" in config and heartbeat * 3 > session:
        yield (
            f"heartbeat.interval.ms={heartbeat}: at most a third of session.timeout.ms={session}, "
            "else the membership is lost silently"
        )
    if poll < session:
        yield f"max.poll.interval.ms={poll}: at least session.timeout.ms={session}"


def once_problems(once: object) -> Iterator[str]:
    """What a consumer is given in place of a policy."""
    if not isinstance(once, Once):
        yield f"once: an effectonce.Once, not {type(once).__name__}"


def topic_problems(topics: object) -> Iterator[str]:
    """What is wrong with a list of topics."""
    if isinstance(topics, str):
        yield f"topics={topics!r}: a list of names, [{topics!r}]"
    elif not isinstance(topics, Sequence) or not topics:
        yield "topics: a list of at least one name"
    else:
        for topic in topics:
            if not isinstance(topic, str) or not _TOPIC.fullmatch(topic):
                yield (
                    f"topic {topic!r}: a name is 1 to 249 letters, digits, dots, - and _, not . or "
                    ".. alone; patterns are not supported"
                )


# -- what librdkafka is given ----------------------------------------------------------------------


def consumer_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """For the consumer; `config` has passed `config_problems`."""
    session = int(config.get("session.timeout.ms", _MILLISECONDS["session.timeout.ms"]))
    heartbeat = min(_MILLISECONDS["heartbeat.interval.ms"], max(session // 3, 1))
    added = {} if _is_broker_led(config) else {"heartbeat.interval.ms": heartbeat}
    return {**added, **config, **OURS}


def admin_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """For an admin client beside it, which warns of every setting that it does not know."""
    return {k: v for k, v in config.items() if not str(k).startswith(_CONSUMER_ONLY)}


def is_incremental(config: Mapping[str, object]) -> bool:
    """librdkafka wants another call where partitions move one by one."""
    return _is_broker_led(config) or "cooperative-sticky" in _strategies(config)


def leaves_by_unsubscribing(config: Mapping[str, object]) -> bool:
    """Whether a static member is no member any more then, as it must stay one (KIP-345).

    librdkafka's close keeps its place, its unsubscribe only where the broker leads (KIP-848, seen).
    """
    return bool(config.get("group.instance.id")) and not _is_broker_led(config)


def _is_broker_led(config: Mapping[str, object]) -> bool:
    return _text(config.get("group.protocol", "classic")) == "consumer"


def _strategies(config: Mapping[str, object]) -> list[str]:
    text = str(config.get("partition.assignment.strategy", "range,roundrobin"))
    return [part.strip() for part in text.split(",") if part.strip()]


def _text(value: object) -> str:
    return str(value).lower()
