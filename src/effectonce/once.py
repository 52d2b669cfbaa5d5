"""`Once`: what the user decided, checked as a whole; nothing is guessed, nothing unsafe built."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from enum import Enum
from typing import TypeVar

from effectonce.core.plan import Unidentified
from effectonce.core.start import StartPolicy
from effectonce.errors import ConfigError
from effectonce.identity import Identify, Identity
from effectonce.model import OnExisting
from effectonce.policy import (
    Effects,
    Gap,
    InStore,
    Limits,
    Moved,
    OnReset,
    OnUnidentified,
    Outside,
    Retry,
    StartAt,
    Window,
)
from effectonce.ports import AsyncStore, Durability, Reach, Store
from effectonce.stores import open_async_store, open_store

__all__ = ["Once"]

_E = TypeVar("_E", bound=Enum)


class Once:
    """One effect per event ID inside the window, under the assumptions that `promise()` lists.

    store: `rocksdb:///path` (`?sync=true` to survive a host crash), `memory:`, or a `Store`.
    identify: where the event ID comes from, `eo.header("event-id")` for example; may chain.
    effects: `eo.InStore()` or `eo.Outside(on_doubt="repeat")`; there is no default.
    scope: the name of "one effect"; keys are unique inside it. Default: the group id.
    window: how long a repeat is recognised, in log time; a marker lives 1 to 1.5 windows.
    retry: attempts at a record, in place, before its partition stops.
    start: where a group begins that nobody has heard of: "earliest" or "latest".
    on_reset: somebody reset the group's offsets: "refuse", "dedupe", "reprocess" or "skip".
    moved: Kafka's witness names another store: "refuse" or "accept".
    gap: records before the position's next are gone by retention: "refuse" or "accept".
    on_unidentified: "raise" (the partition stops) or "process" (unprotected, counted).
    secret: keys the hashes of event IDs, where IDs are sensitive; at least 16 bytes.

    Raises ConfigError with every problem found.
    """

    def __init__(
        self,
        store: str | Store,
        *,
        identify: Identify,
        effects: Effects,
        scope: str | None = None,
        window: timedelta = timedelta(days=7),
        retry: Retry | None = None,
        limits: Limits | None = None,
        start: str = "earliest",
        on_reset: str = "refuse",
        moved: str = "refuse",
        gap: str = "refuse",
        on_unidentified: str = "raise",
        secret: bytes | None = None,
    ) -> None:
        problems: list[str] = []
        self.scope = scope
        self.effects = effects
        self.retry = Retry() if retry is None else retry
        self.limits = Limits() if limits is None else limits
        self.window = Window(window)
        self.on_unidentified = _option(OnUnidentified, "on_unidentified", on_unidentified, problems)
        self.start_at = _option(StartAt, "start", start, problems)
        choices = {
            "on_reset": _option(OnReset, "on_reset", on_reset, problems),
            "moved": _option(Moved, "moved", moved, problems),
            "gap": _option(Gap, "gap", gap, problems),
        }
        problems += _effects_problems(effects)
        problems += Identity(identify, secret).problems()
        problems += self._policy_problems()
        opened = _opened(store, problems)
        if opened is not None:
            problems += _store_problems(opened, effects)
        if problems or opened is None:
            raise ConfigError(problems)
        self.store = opened
        self._named = store
        self.identity = Identity(identify, secret)
        self.start_policy = StartPolicy(
            identify_fingerprint=self.identity.fingerprint,
            accepted_identities=self.identity.accepted,
            window_seconds=self.window.seconds,
            **choices,  # type: ignore[arg-type]
        )

    def _policy_problems(self) -> Iterator[str]:
        if self.scope is not None and not _is_name(self.scope):
            yield "scope: a name of 1 to 200 bytes"
        for name, value, kind in (
            ("retry", self.retry, Retry),
            ("limits", self.limits, Limits),
            ("window", self.window, Window),
        ):
            if isinstance(value, kind):
                yield from value.problems()
            else:
                yield f"{name}={value!r}: an effectonce.{kind.__name__}"

    @property
    def in_store(self) -> bool:
        return isinstance(self.effects, InStore)

    @property
    def on_existing(self) -> OnExisting:
        """An in-store effect whose marker exists must roll back; an outside one has happened."""
        return OnExisting.REFUSE if self.in_store else OnExisting.KEEP_FIRST

    @property
    def unidentified(self) -> Unidentified:
        if self.on_unidentified is OnUnidentified.PROCESS:
            return Unidentified.RUNS_UNPROTECTED
        return Unidentified.BLOCKS

    def async_store(self) -> tuple[AsyncStore, bool]:
        """The store for coroutines, and whether it is whoever asks that must close it.

        A URL is opened anew, so that each event loop has connections of its own; `memory:`, which
        would be another one then, and a Store of the user's stay as they are. Raises ConfigError.
        """
        if isinstance(self._named, str) and not self._named.startswith("memory:"):
            return open_async_store(self._named), True
        found = open_async_store(self.store, closes=False)
        ours: object = found
        return found, ours is not self.store

    def promise(self) -> str:
        """What this configuration promises, under which assumptions, and what remains."""
        traits = self.store.traits
        crash = {
            Durability.NONE: "nothing: the store keeps what it answered in memory alone",
            Durability.PROCESS: "a crash of the process, at any point",
            Durability.HOST: "a crash of the process or of the host, at any point",
        }[traits.durability]
        if self.in_store:
            what = "One committed effect per event ID: effect, marker and position commit together."
            remains = "Damage to the store itself, which Kafka's witness finds at the next start."
        else:
            what = (
                "No loss. A repeat only after a crash, a failure or a time-out between effect and "
                "marker, and always with the same event.key_for(name)."
            )
            remains = "A repeat per doubt; one ID in two partitions at once."
        if traits.durability is Durability.NONE:
            held = "Effects and markers" if self.in_store else "Markers"
            lost = f"{held} are gone with the store's process; a start without them is refused."
            remains = lost if self.in_store else f"{lost} {remains}"
        assumes = [
            f"a copy comes within the window: {_in_words(self.window.seconds)}, in log time",
            "the payload of an event ID does not change",
            "producers' clocks are right within the window",
        ]
        if traits.reach is not Reach.SHARED:
            assumes.append("an event ID always comes through one partition (keyed producers)")
        if traits.reach is Reach.EMBEDDED:
            assumes.append("the consumers of a group that share a partition's state share a host")
        return "\n".join(
            [
                f"Promise: {what}",
                f"Survives: {crash}.",
                f"Assumes: {'; '.join(assumes)}.",
                f"Remains: {remains}",
            ]
        )


def _in_words(seconds: int) -> str:
    """In the largest unit that fits: 7 days, 36 hours, 90 minutes."""
    units = ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))
    unit, name = next(each for each in units if seconds % each[0] == 0)
    count = seconds // unit
    return f"{count} {name}{'' if count == 1 else 's'}"


def _effects_problems(effects: object) -> Iterator[str]:
    if isinstance(effects, Outside):
        yield from effects.problems()
    elif not isinstance(effects, InStore):
        yield (
            f"effects={effects!r}: say where the effect lives, InStore() or "
            'Outside(on_doubt="repeat")'
        )


def _is_name(value: object) -> bool:
    """Whether it can name a folder, a hash tag or a column value, in any store."""
    try:
        return isinstance(value, str) and 1 <= len(value.encode()) <= 200
    except UnicodeEncodeError:  # half a surrogate pair
        return False


def _option(kind: type[_E], name: str, value: str, problems: list[str]) -> _E:
    try:
        return kind(value)
    except ValueError:
        members = list(kind)
        known = ", ".join(repr(member.value) for member in members)
        problems.append(f"{name}={value!r}: one of {known}")
        return members[0]


def _opened(store: str | Store, problems: list[str]) -> Store | None:
    try:
        return open_store(store)
    except ConfigError as error:
        problems += error.problems
        return None


def _store_problems(store: Store, effects: object) -> Iterator[str]:
    if isinstance(effects, InStore) and not store.traits.in_store_effects:
        yield (
            f"effects=InStore(): the {store.traits.name} store holds no effects of yours; "
            'use Outside(on_doubt="repeat") or a store that does'
        )
