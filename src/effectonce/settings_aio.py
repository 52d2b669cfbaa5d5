"""The user's settings for aiokafka: what in them would break the promise, and what is added.

As settings.py has it for confluent-kafka. Beside the consumer stands an admin client of
confluent-kafka's, since aiokafka does not see topic ids; what it needs to reach the brokers is
translated from the same settings, or given as `admin=`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any, Final

from effectonce.errors import ConfigError
from effectonce.once import Once
from effectonce.ports import AsyncStore
from effectonce.settings import once_problems

__all__ = [
    "admin_settings_of",
    "aiokafka_problems",
    "aiokafka_settings",
    "async_store_of",
    "known_settings",
    "rebalance_seconds",
]

OURS: Final[Mapping[str, object]] = {
    "auto_offset_reset": "none",
    "enable_auto_commit": False,
    "isolation_level": "read_committed",
}

_ADVICE: Final = {
    "auto_offset_reset": 'where a new group begins is Once(start="earliest" | "latest")',
    "enable_auto_commit": "positions are committed together with their markers",
    "isolation_level": "aborted transactions must not take effect",
}

_REFUSED: Final = {
    "key_deserializer": "an event's bytes are as Kafka has them; decode them in the handler",
    "value_deserializer": "an event's bytes are as Kafka has them; decode them in the handler",
    "max_poll_interval_ms": "a slow handler never costs the membership here; how long one may "
    "take is Limits(handler_timeout_seconds=)",
    "max_poll_records": "how many are taken at once is Limits(batch=)",
    "consumer_timeout_ms": "use run(..., until=effectonce.END)",
    "loop": "the running one is used",
}

NEVER_MS: Final = 2**31 - 1
"""aiokafka leaves the group if nobody has asked it for records for `max_poll_interval_ms`. Its
heartbeats are a task of their own, so a slow handler is no reason to; a hung one is cut off."""

_MILLISECONDS: Final = {"session_timeout_ms": 10_000, "heartbeat_interval_ms": 3_000}
"""aiokafka's defaults."""

_TRANSLATED: Final = {
    "client_id": "client.id",
    "security_protocol": "security.protocol",
    "sasl_mechanism": "sasl.mechanism",
    "sasl_plain_username": "sasl.username",
    "sasl_plain_password": "sasl.password",
}

_UNTRANSLATED: Final = ("ssl_context", "sasl_oauth_token_provider")
"""Python objects that librdkafka cannot be given."""


def aiokafka_problems(
    settings: Mapping[str, object], admin: object, known: frozenset[str] | None
) -> Iterator[str]:
    """What in a user's settings would break the promise. `known`: the names that aiokafka has."""
    for name in ("bootstrap_servers", "group_id"):
        if not settings.get(name):
            yield f"{name}: missing"
    for name, ours in OURS.items():
        if name in settings and settings[name] != ours:
            yield f"{name}={settings[name]!r}: must stay {ours!r}; {_ADVICE[name]}"
    for name, advice in _REFUSED.items():
        if name in settings:
            yield f"{name}: {advice}"
    for name in sorted(settings.keys() - known) if known is not None else ():
        yield f"{name}: aiokafka has no such setting"
    if known is None:
        yield 'aiokafka is not installed: pip install "effectonce[aiokafka]"'
    yield from _timing_problems(settings)
    yield from _admin_problems(settings, admin)


def _admin_problems(settings: Mapping[str, object], admin: object) -> Iterator[str]:
    if admin is not None and not isinstance(admin, Mapping):
        yield f"admin: confluent-kafka's settings by name, not {type(admin).__name__}"
    elif admin is None:
        for name in _UNTRANSLATED:
            if settings.get(name) is not None:
                yield (
                    f"{name}: say how confluent-kafka reaches the same brokers, such as "
                    'admin={"ssl.ca.location": ...}: topic ids are read with it'
                )


def _timing_problems(settings: Mapping[str, object]) -> Iterator[str]:
    session, heartbeat = (settings.get(name, ms) for name, ms in _MILLISECONDS.items())
    if not _is_count(session) or not _is_count(heartbeat):
        yield f"{', '.join(_MILLISECONDS)}: whole milliseconds"
    elif "heartbeat_interval_ms" in settings and int(str(heartbeat)) * 3 > int(str(session)):
        yield (
            f"heartbeat_interval_ms={heartbeat}: at most a third of session_timeout_ms={session}, "
            "else the membership is lost silently"
        )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def aiokafka_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """For the consumer; `settings` have passed `aiokafka_problems`."""
    session = int(settings.get("session_timeout_ms", _MILLISECONDS["session_timeout_ms"]))
    heartbeat = min(_MILLISECONDS["heartbeat_interval_ms"], max(session // 3, 1))
    added = {"heartbeat_interval_ms": heartbeat, "max_poll_interval_ms": NEVER_MS}
    return {**added, **settings, **OURS}


def rebalance_seconds(settings: Mapping[str, Any]) -> float:
    """How long the group waits for us in a rebalance."""
    session = settings.get("session_timeout_ms", _MILLISECONDS["session_timeout_ms"])
    return int(settings.get("rebalance_timeout_ms") or session) / 1000


def admin_settings_of(
    settings: Mapping[str, Any], admin: Mapping[str, Any] | None
) -> dict[str, Any]:
    """For the admin client; what `admin` says goes before what is translated."""
    brokers = settings["bootstrap_servers"]
    translated = {
        theirs: settings[ours] for ours, theirs in _TRANSLATED.items() if ours in settings
    }
    if "sasl.mechanism" in translated and "SASL" not in str(settings.get("security_protocol")):
        del translated["sasl.mechanism"]
    listed = brokers if isinstance(brokers, str) else ",".join(brokers)
    return {"bootstrap.servers": listed, **translated, **(admin or {})}


def known_settings() -> frozenset[str] | None:
    """The names that aiokafka has; None where it is not installed."""
    if find_spec("aiokafka") is None:
        return None
    from aiokafka import AIOKafkaConsumer

    return frozenset(inspect.signature(AIOKafkaConsumer).parameters) - {"topics"}


def async_store_of(once: object, problems: list[str]) -> tuple[AsyncStore, bool] | None:
    """The store for coroutines, and whether closing it is ours."""
    if not isinstance(once, Once):
        problems += once_problems(once)
        return None
    try:
        return once.async_store()
    except ConfigError as error:
        problems += error.problems
        return None
