"""What every source of event IDs is: it finds one in a record, and can be chained and replaced.

`a | b` asks b only where a found nothing at all. An ID that is there and broken is a problem, and
nobody else is asked: the repaired event would come again, under another key (`ProblemKind`).
For the same reason no hash and no delivery may end a chain: where a producer forgets the ID, a
record must stop, not silently get an identity that its own retry does not share.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, NoReturn, TypeAlias

from effectonce.identity.keys import EventId
from effectonce.identity.record import Columns, NoId, ProblemKind, Record

Spec: TypeAlias = list[Any]
"""JSON that changes whenever a record could get another key. Stored, hashed: keep its shape."""


class Stands(Enum):
    """Where a source may stand in a chain."""

    ANYWHERE = "anywhere"
    ALONE = "alone"
    """It answers for every record, so nothing may stand before it, and behind it nothing would."""


class Source(ABC):
    """Finds the event ID of a record. `str()` names it in problems and counters."""

    __slots__ = ()

    stands: ClassVar[Stands] = Stands.ANYWHERE
    needs_utf8: ClassVar[bool] = True
    """Whether an ID of `column` must be UTF-8 text."""

    @abstractmethod
    def find(self, record: Record) -> EventId:
        """The ID of one record; raises `NoId`."""

    @abstractmethod
    def spec(self) -> Spec: ...

    def column(self, columns: Columns) -> list[bytes | None]:
        """The fast way for a whole batch: unchecked IDs; None or b"" where `find` must look."""
        return [None] * len(columns)

    def problems(self) -> Iterator[str]:
        """What is wrong with the configuration."""
        yield from ()

    def leaves(self) -> Iterator[Source]:
        """The sources that this one is made of; itself, if of none."""
        yield self

    def __or__(self, other: Source) -> Source:
        if not isinstance(other, Source):
            return NotImplemented
        return Chain((*chained(self), *chained(other)))

    def replaces(self, old: Identify) -> Replacing:
        """Announces that this identity takes over where `old` was in use, under the same secret.

        Markers of `old` are found again only where both give a record the same ID.
        """
        return Replacing(self, ()).replaces(old)


@dataclass(frozen=True, slots=True)
class Replacing:
    """An identity, and those that it replaces."""

    current: Source
    former: tuple[Source, ...]

    def replaces(self, old: Identify) -> Replacing:
        older = old.former if isinstance(old, Replacing) else ()
        return Replacing(self.current, (*self.former, current(old), *older))

    def problems(self) -> Iterator[str]:
        yield from self.current.problems()
        yield from no_sources(self.former, "replaces()")

    def _not_in_a_chain(self, other: object) -> NoReturn:
        raise TypeError("replaces() goes behind the whole identity: (a | b).replaces(c)")

    __or__ = __ror__ = _not_in_a_chain


Identify: TypeAlias = Source | Replacing
"""What `Once(identify=...)` takes."""


def current(identify: Identify) -> Source:
    """The identity in use, without those it replaces."""
    return identify.current if isinstance(identify, Replacing) else identify


def no_sources(found: Sequence[object], where: str) -> Iterator[str]:
    """What a user gave for sources that are none: the name of a header, mostly."""
    for each in found:
        if not isinstance(each, Source):
            yield f'{where}: {each!r} is no source of IDs; header("event-id") is one'


# -- one after another ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Chain(Source):
    """`a | b`: the first source that finds anything decides."""

    sources: tuple[Source, ...]

    def find(self, record: Record) -> EventId:
        return ask(self.sources, record)[1]

    def spec(self) -> Spec:
        return ["chain", *(source.spec() for source in self.sources)]

    def problems(self) -> Iterator[str]:
        for source in self.sources:
            yield from source.problems()
        for behind in self.sources[1:]:
            if any(leaf.stands is Stands.ALONE for leaf in behind.leaves()):
                yield (
                    f"{behind} stands behind another source: a record that has lost its ID would"
                    " silently get one that its own retry may not share. Use it alone"
                )
        if self.sources[0].stands is Stands.ALONE:
            yield f"{self.sources[0]} always answers: the sources behind it are never asked"

    def leaves(self) -> Iterator[Source]:
        for source in self.sources:
            yield from source.leaves()

    def __str__(self) -> str:
        return " | ".join(map(str, self.sources))


def chained(source: Source) -> tuple[Source, ...]:
    """The sources of a chain, in order; a chain of one, if it is none."""
    return source.sources if isinstance(source, Chain) else (source,)


def ask(sources: Sequence[Source], record: Record) -> tuple[Source, EventId]:
    """The first of `sources` that finds anything, and what it found; raises `NoId`."""
    missing: list[str] = []
    for source in sources:
        try:
            return source, source.find(record)
        except NoId as no:
            if no.problem.kind is not ProblemKind.MISSING:
                raise
            missing.append(no.problem.text)
    raise NoId(ProblemKind.MISSING, "; ".join(missing))
