"""A topic's last records, read over and over without a trace, and the clock beside it.

Sample           which offsets: fixed when it is taken, so every run reads the same
FetchedAhead     the client holds the whole sample before the clock starts: the broker rests,
                 and the thread that consumes is the bottleneck
by_hand          a consumer's loop as one would write it
TimedClient      what `OnceConsumer` is given to be timed
SampleClient     ... to stay out of every group: assigned by hand, commits are kept to itself
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Final, TypeAlias

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from effectonce.errors import BrokerError, EffectOnceError, UnknownTopic
from effectonce.kafka import ConfluentClient
from effectonce.model import Committed, LogEnds
from effectonce.ports import CommitMode, KafkaOffset, Listener, Records
from effectonce.ports import TopicPartition as Key
from effectonce.settings import consumer_settings

LOOK_SECONDS: Final = 0.02
"""Between two looks while the sample is fetched ahead. librdkafka speaks of it only inside a poll,
and a poll takes a message along, so it is not asked all the time."""
CALL_SECONDS: Final = 10.0
QUIET_SECONDS: Final = 30.0
"""Without a record before the sample's end: the broker has gone, or the records have."""
AHEAD_BYTES: Final = 1 << 29
"""Of values at most, which up to three runs hold side by side; librdkafka takes 2 GB."""

_OF_GROUPS: Final = (
    "group.", "partition.assignment.", "session.", "heartbeat.", "max.poll.", "auto.",
    "enable.auto.",
    "enable.partition.eof", "isolation.level", "on_commit", "statistics.interval.ms",
)  # fmt: skip


class CannotMeasure(EffectOnceError):
    """What was asked for cannot be measured; the text says why and what to do."""


# -- what is read ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sample:
    """The same records for every run: of partition `n` those from `spans[n][0]` to `spans[n][1]`.

    Offsets have gaps (compaction, transactions), so it may hold fewer records than they span.
    """

    topic: str
    spans: tuple[tuple[int, int], ...]

    @property
    def filled(self) -> dict[int, tuple[int, int]]:
        """The partitions that hold anything."""
        return {number: (at, end) for number, (at, end) in enumerate(self.spans) if at < end}

    @property
    def span(self) -> int:
        return sum(end - at for at, end in self.spans)


def reading(config: Mapping[str, Any]) -> dict[str, Any]:
    """The user's settings for a consumer that joins no group and creates no topic.

    A group.id is only a name here: nobody joins, nobody commits. It begins with the user's own,
    for the sake of ACLs by prefix.
    """
    kept = {name: value for name, value in config.items() if not name.startswith(_OF_GROUPS)}
    own = f"{config['group.id']}-" if "group.id" in config else ""
    group = f"{own}effectonce-bench-{secrets.token_hex(8)}"
    return {
        "log_level": 0,  # what librdkafka complains of reaches us as errors
        **kept,
        "group.id": group,
        "allow.auto.create.topics": False,
    }


def take_sample(config: Mapping[str, Any], topic: str, most: int) -> Sample:
    """The last `most` records, from each partition its share.

    Raises BrokerError, UnknownTopic, CannotMeasure for what librdkafka refuses of `config`.
    """
    try:
        consumer = Consumer(consumer_settings(config))
    except (KafkaException, TypeError, ValueError) as error:
        raise CannotMeasure(f"librdkafka refuses the configuration: {error}") from error
    try:
        found = consumer.list_topics(topic, timeout=CALL_SECONDS).topics[topic]
        if not found.partitions:
            raise UnknownTopic(
                f"no such topic on this cluster, or no right to see it: {topic}. Mend the name; "
                "nothing was created"
            )
        ends = [
            _ends(consumer, TopicPartition(topic, number)) for number in sorted(found.partitions)
        ]
    except KafkaException as error:
        raise BrokerError(
            f"no broker answered at bootstrap.servers={config['bootstrap.servers']}: "
            f"{error.args[0].str()}"
        ) from error
    finally:
        consumer.close()
    whole = sum(end - at for at, end in ends)
    share = min(1.0, most / whole) if whole else 0.0
    return Sample(topic, tuple((end - ceil((end - at) * share), end) for at, end in ends))


def _ends(consumer: Consumer, at: TopicPartition) -> tuple[int, int]:
    ends: Any = consumer.get_watermark_offsets(at, timeout=CALL_SECONDS, cached=False)
    if ends is None:
        raise BrokerError(f"Kafka, log ends: no answer within {CALL_SECONDS} s")
    return ends[0], ends[1]


# -- the clock -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Measured:
    """How long `messages` of the sample took (the rest came early), and what was `handled` of all.

    `cpu_seconds` is the consuming thread's alone: what another process takes away is not in it.
    """

    messages: int
    seconds: float
    cpu_seconds: float
    handled: int
    handler_seconds: float = 0.0
    """In the user's handler, for all that was handled."""


class Stopwatch:
    """Runs from the first `start` to the last `stop`, pauses left out."""

    def __init__(self) -> None:
        self._began: tuple[float, float] | None = None
        self._before = (0.0, 0.0)
        self.seconds = self.cpu_seconds = 0.0

    def start(self) -> None:
        self._began = self._began or (time.perf_counter(), time.thread_time())

    def stop(self) -> None:
        if self._began is not None:
            self.seconds = self._before[0] + time.perf_counter() - self._began[0]
            self.cpu_seconds = self._before[1] + time.thread_time() - self._began[1]

    def pause(self) -> None:
        """Until the next `start`; up to now it counts."""
        self.stop()
        self._began, self._before = None, (self.seconds, self.cpu_seconds)


class Turns:
    """A run that waits, its clock paused, before every so many `messages`.

    settle: called in the clock's time, so that nothing is left to be done in the pause.
    """

    def __init__(
        self, messages: int, wait: Callable[[], object], settle: Callable[[], object] | None = None
    ) -> None:
        self._messages, self._wait, self._settle = messages, wait, settle
        self._due = 0

    def take(self, done: int, watch: Stopwatch) -> None:
        """Wait if it is time."""
        if done >= self._due:
            if self._settle is not None:
                self._settle()
            watch.pause()
            self._due = done + self._messages
            self._wait()


AT_ONCE: Final = Turns(1 << 62, lambda: None)
"""Nobody is measured beside it."""


class FetchedAhead:
    """Whether the clock may start: the client holds the whole sample, as its statistics say.

    `live`: as soon as the first record has come; the rest is fetched while it is consumed.
    """

    def __init__(self, sample: Sample, *, live: bool = False) -> None:
        self._sample = sample
        self._ends = {str(number): end for number, (_, end) in sample.filled.items()}
        self.full = False
        self.live = live
        self.config: Mapping[str, Any] = {}
        if not live:
            self.config = {
                "statistics.interval.ms": 50,
                "stats_cb": self._hear,
                "queued.min.messages": 10_000_000,
                "queued.max.messages.kbytes": 2_097_151,
            }

    def look(self) -> None:
        """A message came early."""
        if self.live:
            self.full = True
        else:
            time.sleep(LOOK_SECONDS)

    def _hear(self, statistics: str) -> None:
        if self.full:
            return
        topic = json.loads(statistics)["topics"].get(self._sample.topic, {})
        rows = topic.get("partitions", {})
        self.full = all(
            number in rows and rows[number]["next_offset"] >= end
            for number, end in self._ends.items()
        )


# -- loops written by hand -------------------------------------------------------------------------

_BY_HAND: Final = {"enable.auto.commit": False, "auto.offset.reset": "error"}

Handle: TypeAlias = Callable[[list[Message]], int]
"""Deals with a batch; returns how many events it gave to the handler."""


def nothing(event: object) -> None:
    """The empty handler."""


def bare(consumer: Consumer) -> Handle:
    """What no consumer can do without."""

    def handle(messages: list[Message]) -> int:
        for message in messages:
            message.headers()
            message.value()
        nothing(messages)
        return len(messages)

    return handle


def by_hand(
    config: Mapping[str, Any],
    sample: Sample,
    records: int,
    handle_with: Callable[[Consumer], Handle],
    *,
    batch: int,
    live: bool = False,
    turns: Turns = AT_ONCE,
) -> Measured:
    """Consume the sample's `records`; the batches go to what `handle_with` makes."""
    ahead = FetchedAhead(sample, live=live)
    consumer = Consumer({**config, **ahead.config, **_BY_HAND})
    consumer.assign(
        [TopicPartition(sample.topic, number, at) for number, (at, _) in sample.filled.items()]
    )
    handle = handle_with(consumer)
    early: list[Message] = []
    patience = time.monotonic() + QUIET_SECONDS
    while not ahead.full:
        message = consumer.poll(LOOK_SECONDS)
        if message is not None:
            early += _readable([message])
            ahead.look()
            patience = time.monotonic() + QUIET_SECONDS
        elif time.monotonic() > patience:
            raise _too_quiet(sample)
    handled = handle(early)
    left = timed = records - len(early)
    watch, quiet = Stopwatch(), 0.0
    while left > 0:
        turns.take(timed - left, watch)
        watch.start()
        # it waits the whole second unless as many arrive as were asked for
        wanted = min(batch, left)
        messages = consumer.consume(wanted, 1.0)
        if len(messages) < wanted:  # else no error is looked for: 11 ns a message
            messages = _readable(messages)
            quiet = 0.0 if messages else quiet + 1.0
            if quiet > QUIET_SECONDS:
                raise _too_quiet(sample)
        handled += handle(messages)
        left -= len(messages)
    watch.stop()
    consumer.close()
    return Measured(timed, watch.seconds, watch.cpu_seconds, handled)


def _readable(messages: Sequence[Message]) -> list[Message]:
    for message in messages:
        error = message.error()
        if error is not None and not error.retriable():
            raise BrokerError(f"Kafka: {error.str()}")
    return [message for message in messages if message.error() is None]


def _too_quiet(sample: Sample) -> BrokerError:
    return BrokerError(
        f"{sample.topic}: no record came for {QUIET_SECONDS:.0f} s, and the sample is not read to "
        "its end: is the broker there, and has retention not passed the sample?"
    )


# -- clients for OnceConsumer ----------------------------------------------------------------------


class TimedClient(ConfluentClient):
    """The real client, timed from the first fetch of a full queue until all of it is settled."""

    def __init__(
        self,
        config: Mapping[str, Any],
        sample: Sample,
        *,
        live: bool = False,
        turns: Turns = AT_ONCE,
    ) -> None:
        self._ahead = FetchedAhead(sample, live=live)
        self._turns = turns
        self._took_some = False
        self.watch = Stopwatch()
        self.timed = 0
        super().__init__({**config, **self._ahead.config})

    def fetch(self, limit: int, timeout_seconds: float) -> Sequence[Records]:
        if not self._ahead.full:
            early = super().fetch(1, timeout_seconds)
            if early:
                self._ahead.look()
            return early
        self.settled()
        self._turns.take(self.timed, self.watch)
        self.watch.start()
        fetched = super().fetch(limit, timeout_seconds)
        self._took_some = bool(fetched)
        self.timed += sum(map(len, fetched))
        return fetched

    def settled(self) -> None:
        """Whoever fetches again, or returns, has settled what came before."""
        if self._took_some:
            self._took_some = False
            self.watch.stop()


class SampleClient(ConfluentClient):
    """The real client on a sample, in no group: it joins none, and what is committed goes nowhere.

    The log is the sample: it begins and ends there, whatever is produced meanwhile.
    """

    def __init__(self, config: Mapping[str, Any], sample: Sample) -> None:
        self._keep_to(sample)
        super().__init__(config)

    def _keep_to(self, sample: Sample) -> None:
        self._sample = sample
        self._quiet_since: float | None = None

    def subscribe(self, topics: Sequence[str], listener: Listener) -> None:
        self._listener = listener
        self._topics = topics
        parts = [TopicPartition(self._sample.topic, n) for n in self.partitions_of("")]
        self._on_assign(self._consumer, parts)

    def _give_back(self) -> None:
        """There is no group that would take them."""

    def fetch(self, limit: int, timeout_seconds: float) -> Sequence[Records]:
        fetched = super().fetch(limit, timeout_seconds)
        if fetched:
            self._quiet_since = None
            return [part for part in map(self._within, fetched) if len(part)]
        now = time.monotonic()
        self._quiet_since = self._quiet_since or now
        if now - self._quiet_since > QUIET_SECONDS:
            raise _too_quiet(self._sample)
        return fetched

    def _within(self, records: Records) -> Records:
        offsets, end = records.offsets(), self._sample.spans[records.partition][1]
        return records if offsets[-1] < end else records.part(0, int((offsets < end).sum()))

    def commit(self, offsets: Sequence[KafkaOffset], mode: CommitMode) -> None:
        """The store has the position; nobody comes after us who would ask Kafka."""

    def committed(self, partitions: Sequence[Key]) -> Mapping[Key, Committed | None]:
        return dict.fromkeys(partitions)

    def log_ends(self, partition: Key) -> LogEnds:
        return LogEnds(*self._sample.spans[partition[1]])

    def known_end(self, partition: Key) -> int:
        return self._sample.spans[partition[1]][1]

    def partitions_of(self, topic: str) -> Sequence[int]:
        return range(len(self._sample.spans))


class TimedSampleClient(SampleClient, TimedClient):
    """Both."""

    def __init__(
        self, config: Mapping[str, Any], sample: Sample, *, live: bool, turns: Turns = AT_ONCE
    ) -> None:
        self._keep_to(sample)
        TimedClient.__init__(self, config, sample, live=live, turns=turns)
