"""Where a partition begins: the store's row against Kafka's witness. First match wins.

S is the row as `open` found it, K Kafka's committed offset, L and E the log's ends. K is *ours*
where its metadata reads `eo1;store id;epoch;topic id`, else *foreign*. "Untouched" means that S
was written by a start and nothing has run since (its commit has serial 0).

| row | S              | K                          | begin at                                     |
| --- | -------------- | -------------------------- | -------------------------------------------- |
| 1   | any            | ours, of an old topic id   | treat K as none                              |
| 2   | any            | ours, other store id       | embedded: refuse, or `moved`: K; else refuse |
| 3   | none           | ours, this store           | refuse: the store lost its rows              |
| 4   | other topic id | any                        | L: topic recreated; markers are kept         |
| 5   | none           | none, or a mark            | L, or the mark; pinned                       |
| 6   | none           | foreign                    | K, horizon K: a plain group is adopted       |
| 7   | has            | none                       | shared, or untouched: S; embedded: refuse    |
| 8   | has            | ours, ahead                | S, loudly: the store went back               |
| 9   | has            | ours, else                 | S: Kafka lags                                |
| 10  | has            | foreign, K = S             | shared, or untouched: S                      |
|     | untouched      | foreign, answered by S     | S: we died before Kafka was told             |
| 11  | has            | foreign, else              | `on_reset`                                   |
| 12  |                | begin < L                  | refuse, or `gap`: L                          |
| 13  |                | begin > E                  | refuse: the log was cut off or restored      |

A witness of epoch 0, which is never handed out, marks where the log ended when a group first came
with `start="latest"`. All partitions are marked in one request, so that a partition without a mark
is one that was added later, and begins at its first record. It says nothing to a row: row 9.

In front of it: an epoch that Kafka has seen is never used again; the store is opened anew above it.
Two more refusals stand there: a row written under another `identify`, or another `window`.
(next, our metadata) goes to Kafka before the first record runs; without that, a successor that
crashed before its first commit is invisible (416 repeats in the model without it, 0 with it).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from effectonce.core.settle import commit_id, serial_of
from effectonce.model import NO_ID, UNSET, Committed, GenerationStart, LogEnds, Partition, Position
from effectonce.policy import Gap, Moved, OnReset

WITNESS_VERSION = "eo1"
MOST_EPOCHS = 2**62
"""A store has room for as many; whoever names a later one is a stranger."""


@dataclass(frozen=True, slots=True)
class Witness:
    """What we told Kafka beside an offset."""

    store_id: bytes
    epoch: int
    topic_id: bytes

    def __str__(self) -> str:
        return f"{WITNESS_VERSION};{self.store_id.hex()};{self.epoch};{self.topic_id.hex()}"


def first_mark(store_id: bytes, topic_id: bytes) -> str:
    """The metadata that marks a first start at the log's end."""
    return str(Witness(store_id, 0, topic_id))


def witness_of(position: Position) -> str:
    """The metadata to commit to Kafka with this position."""
    return str(Witness(position.store_id, position.epoch, position.topic_id))


def read_witness(metadata: str) -> Witness | None:
    """None for whatever we did not write: foreign metadata is anybody's text."""
    fields = metadata.split(";")
    if [len(f) for f in fields[1::2]] != [32, 32] or not fields[2].isdecimal():
        return None
    try:
        read = Witness(bytes.fromhex(fields[1]), int(fields[2]), bytes.fromhex(fields[3]))
    except ValueError:
        return None
    # to the letter: int and fromhex read more than we write
    return read if str(read) == metadata and read.epoch < MOST_EPOCHS else None


@dataclass(frozen=True, slots=True)
class Situation:
    """All that is known when a partition is to begin."""

    at: Partition
    row: Position | None
    epoch: int
    store_id: bytes
    topic_id: bytes
    committed: Committed | None
    log: LogEnds
    shared: bool
    serial_base: int = 0
    """What the serials of this ownership period begin at."""
    refused: Position | None = None
    """Of our own last commit that was stale and yet left its markers, being facts."""


@dataclass(frozen=True, slots=True)
class StartPolicy:
    """The options that rows of the table ask for, and what the row must match."""

    identify_fingerprint: bytes
    accepted_identities: frozenset[bytes]
    window_seconds: int
    on_reset: OnReset = OnReset.REFUSE
    moved: Moved = Moved.REFUSE
    gap: Gap = Gap.REFUSE


@dataclass(frozen=True, slots=True)
class Begin:
    """Begin at `position.next`. `write`: the row must hold it before Kafka does."""

    row: str
    position: Position
    write: bool
    loud: str | None = None
    went_back: bool = False
    """The store has forgotten some of what it knew (row 8)."""

    @property
    def in_doubt(self) -> bool:
        """Whether records ahead of the position may have run already."""
        return self.position.in_flight or self.went_back


@dataclass(frozen=True, slots=True)
class Reopen:
    """Kafka has seen this epoch, or a later one: open once more, above that, and read again.

    The store went back and hands its epochs out again: two owners of one epoch could not be told
    apart (simulated: one's commit was taken for a re-send of the other's, and was never stored).
    Or somebody has opened the partition since we did, and what we hold of its row is old.
    """

    above: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """Do not begin. The message says what is safe and what to do."""

    row: str
    message: str


def start(situation: Situation, policy: StartPolicy) -> Begin | Reopen | Refuse:
    """Where the partition begins, or why it may not."""
    if (seen := _epoch_seen(situation)) >= situation.epoch:
        return Reopen(above=seen)
    refusal = _wrong_row(situation, policy)
    begin = refusal or _begin(situation, policy)
    if isinstance(begin, Refuse):
        return begin
    return _within_log(_ahead_of_it(begin, situation.refused), situation, policy)


def _ahead_of_it(begin: Begin, refused: Position | None) -> Begin:
    """The row does not know of markers that a refused commit has left ahead of it.

    Their generation was dropped as soon as the log had jumped a window: copies ran again, and the
    horizon did not say so to a reset (2 of 70,000 simulated runs).
    """
    at = begin.position
    if refused is None or (refused.topic_id, refused.run) != (at.topic_id, at.run):
        return begin
    until = max(at.marked_until, refused.marked_until)
    return replace(begin, position=replace(at, marked_until=until))


def _epoch_seen(s: Situation) -> int:
    """The last epoch of this store that Kafka has heard of, whatever topic it was for."""
    ours = read_witness(s.committed.metadata) if s.committed else None
    return ours.epoch if ours and ours.store_id == s.store_id else 0


def _wrong_row(s: Situation, policy: StartPolicy) -> Refuse | None:
    row = s.row
    if row is None:
        return None
    if row.store_id != s.store_id:
        return Refuse(
            "2",
            f"{s.at}: its row was written by another store ({_short(row.store_id)}, "
            f"this is {_short(s.store_id)}): a partition's directory was copied here alone. "
            "Nothing was run. Put the whole store back, or remove that copy",
        )
    if row.identify_fingerprint not in {policy.identify_fingerprint, *policy.accepted_identities}:
        return Refuse(
            "identify",
            f"{s.at}: its markers were written under another `identify` (or "
            "secret), so events that took effect would look new. Nothing was run. Restore the "
            "former one, or, if both give every event the same ID, announce it: "
            "identify=new.replaces(old)",
        )
    if row.window_seconds != policy.window_seconds:
        return Refuse(
            "window",
            f"{s.at}: its markers are kept in generations for a window of "
            f"{row.window_seconds} s, and the window is now {policy.window_seconds} s. Nothing was "
            "run. Keep the former window, or use a new scope once the old one has run out",
        )
    return None


def _begin(s: Situation, policy: StartPolicy) -> Begin | Refuse:
    row, committed = s.row, s.committed
    ours = read_witness(committed.metadata) if committed else None
    if ours and not _same_topic(ours.topic_id, s.topic_id):
        committed = ours = None  # row 1
    marked = committed is not None and ours is not None and ours.epoch == 0
    if ours and committed and ours.store_id != s.store_id and not marked:
        return _moved(s, policy, committed, ours)
    if row is None:
        return _without_row(s, policy, committed, ours)
    if not _same_topic(row.topic_id, s.topic_id):
        return _recreated(s, policy, row)
    adopted = _adopted(s, policy, row)
    if committed is None:
        return _witness_gone(s, adopted)
    if marked:
        return _same(s, "9", adopted)
    if ours:
        return _our_witness(s, adopted, committed, ours)
    return _foreign(s, policy, adopted, committed)


def _moved(
    s: Situation, policy: StartPolicy, committed: Committed, ours: Witness
) -> Begin | Refuse:
    what = (
        f"{s.at}: Kafka's committed offset {committed.offset} was written by another store "
        f"({_short(ours.store_id)}, this is {_short(s.store_id)})"
    )
    if s.shared:
        return Refuse(
            "2",
            f"{what}: two stores for one group, or the database was flushed or "
            "swapped. Nothing was run. Connect or restore the former one, or use a new group; "
            "moved= is for embedded stores",
        )
    if policy.moved is Moved.REFUSE:
        return Refuse(
            "2",
            f"{what}: the partition moved here from another host, or the state "
            "directory was lost. Nothing was run. Bring its directory here, or pass "
            'moved="accept" to go on at that offset without what is kept there: markers, and '
            "in-store effects",
        )
    base = _adopted(s, policy, s.row) if s.row else _fresh(s, policy)
    horizon = max(base.horizon, committed.offset)
    position = replace(_at(base, committed.offset), horizon=horizon)
    return _written("2", s, position, f'{what}; going on there, as moved="accept" says')


def _without_row(
    s: Situation, policy: StartPolicy, committed: Committed | None, ours: Witness | None
) -> Begin | Refuse:
    fresh = _fresh(s, policy)
    if ours and committed and ours.epoch == 0:
        at = committed.offset
        return _written("5", s, replace(fresh, next=at, horizon=at))
    if ours and committed:
        lost, back = (
            (
                "it was flushed in part, or its layout, index or",
                "Restore it, or take the former ones or",
            )
            if s.shared
            else ("its directory was lost, or the", "Put the directory back, or take the former")
        )
        return Refuse(
            "3",
            f"{s.at}: Kafka says that this store has processed it up to offset "
            f"{committed.offset}, and the store has no row for it: {lost} "
            f"scope is a new one. Nothing was run. {back} scope; or, to go on without its "
            "markers, set the group's offset with kafka-consumer-groups --reset-offsets",
        )
    if committed:
        loud = (
            f"{s.at}: adopting the group's committed offset {committed.offset}; what was "
            "processed before has no markers, so a reset below it cannot be deduplicated"
        )
        position = replace(fresh, next=committed.offset, horizon=committed.offset)
        return _written("6", s, position, loud)
    begin = s.log.start
    return _written("5", s, replace(fresh, next=begin, horizon=begin))


def _recreated(s: Situation, policy: StartPolicy, row: Position) -> Begin:
    begin = s.log.start
    position = replace(
        _at(_adopted(s, policy, row), begin),
        horizon=begin,
        marked_until=UNSET,
        # below the log: as if all were passed just now, so that each is kept for a window from here
        # (what ran unnoticed in the new log, behind a gap, is marked in an old one: simulated)
        generations=tuple(replace(g, offset=begin - 1, until=begin) for g in row.generations),
    )
    loud = f"{s.at}: the topic was deleted and created again; beginning at {begin}, markers kept"
    return _written("4", s, position, loud)


def _witness_gone(s: Situation, row: Position) -> Begin | Refuse:
    if s.shared or serial_of(row.commit_id) == 0:
        return _same(s, "7", row)
    return Refuse(
        "7",
        f"{s.at}: the store stands at offset {row.next}, and Kafka has no committed "
        "offset for the group: it expired, or the group was deleted, so nothing shows that this "
        "copy of the store is the newest. Nothing was run. If it is, set the group's offset to "
        f'{row.next} with kafka-consumer-groups --reset-offsets and pass on_reset="dedupe" once',
    )


def _our_witness(s: Situation, row: Position, committed: Committed, ours: Witness) -> Begin:
    if committed.offset > row.next:
        loud = (
            f"{s.at}: the store is older than Kafka's witness (offset {row.next}, Kafka has "
            f"{committed.offset} of epoch {ours.epoch}): restored from a copy, or a suffix was "
            f"lost. Going on at {row.next}: effects inside the store went back with "
            "it and happen again; effects outside may repeat"
        )
        return replace(_same(s, "8", row, loud), went_back=True)
    return _same(s, "9", row)


def _foreign(
    s: Situation, policy: StartPolicy, row: Position, committed: Committed
) -> Begin | Refuse:
    to = committed.offset
    untouched = serial_of(row.commit_id) == 0
    if to == row.next and (s.shared or untouched):
        return _same(s, "10", row)
    what = f"{s.at}: somebody set the group's offset to {to}; the store stands at {row.next}"
    if to == row.pinned_start and untouched:
        return _same(s, "10", row, f"{what}, which was the answer to that")
    if policy.on_reset is OnReset.DEDUPE:
        if to < row.horizon:
            return Refuse(
                "11",
                f"{what} and has markers only from {row.horizon} on: what is below may repeat. "
                'Nothing was run. Reset to there or later, or pass on_reset="reprocess"',
            )
        return _written("11", s, _at(row, to), f'{what}; going there, on_reset="dedupe"')
    if policy.on_reset is OnReset.REPROCESS:
        again = replace(_at(row, to), run=row.run + 1, horizon=to)
        loud = f'{what}; everything from there runs again (run {again.run}), on_reset="reprocess"'
        return _written("11", s, again, loud)
    if policy.on_reset is OnReset.SKIP:
        skip = max(to, row.next)
        return _written("11", s, _at(row, skip), f'{what}; going on at {skip}, on_reset="skip"')
    return Refuse(
        "11",
        f'{what}. Nothing was run. Say what is meant: on_reset="dedupe" (go there, '
        'repeats are answered), "reprocess" (go there, run everything again) or "skip" (only '
        "forward); or set the group's offset back",
    )


def _within_log(begin: Begin, s: Situation, policy: StartPolicy) -> Begin | Refuse:
    at, log = begin.position.next, s.log
    if at < log.start:
        what = (
            f"{s.at}: {log.start - at} records from {at} to {log.start - 1} are gone by retention"
        )
        if policy.gap is Gap.REFUSE:
            return Refuse(
                "12",
                f"{what} before they took effect. Nothing was run. If that is "
                'known, pass gap="accept" to go on at the first record left',
            )
        loud = f'{what}; going on at {log.start}, as gap="accept" says'
        if begin.loud:
            loud = f"{begin.loud}. {loud}"
        later = _written("12", s, _at(begin.position, log.start), loud)
        return replace(later, went_back=begin.went_back)
    if at > log.end:
        return Refuse(
            "13",
            f"{s.at}: the position is {at} and the log ends at {log.end}: it was "
            "cut off (unclean leader election) or restored from a copy. Nothing was run. Check "
            "the cluster; then set the group's offset with kafka-consumer-groups --reset-offsets "
            "and say what is meant with on_reset=",
        )
    return begin


def _fresh(s: Situation, policy: StartPolicy) -> Position:
    return Position(
        store_id=s.store_id,
        topic_id=s.topic_id,
        epoch=s.epoch,
        identify_fingerprint=policy.identify_fingerprint,
        window_seconds=policy.window_seconds,
    )


def _adopted(s: Situation, policy: StartPolicy, row: Position) -> Position:
    """The row, with what is known by now; a topic id that was known once is never forgotten."""
    topic_id = row.topic_id if s.topic_id == NO_ID else s.topic_id
    return replace(row, topic_id=topic_id, identify_fingerprint=policy.identify_fingerprint)


def _at(row: Position, offset: int) -> Position:
    """The row, moved by an operator: what was known of the record at its head is void.

    Not that something may have been in flight: a killed owner's effects can lie ahead of it still.
    """
    moved = _passing(row, offset)
    return replace(
        moved,
        next=offset,
        generations=_passed_again(moved.generations, offset),
        leader_epoch=UNSET,
        attempt_offset=UNSET,
        attempts=0,
        stalled_opens=0,
    )


def _passing(row: Position, offset: int) -> Position:
    """Markers ahead of the position that a move passes are kept for a window from the next record.

    Else they were passed in the old log time, and dropped as soon as the log had jumped a window:
    a copy ran again (1 of 75,000 simulated runs, a gap accepted behind a failed record).
    """
    if offset <= row.next or row.marked_until <= row.next:
        return row
    until = offset + 1
    return replace(
        row,
        marked_until=max(row.marked_until, until),
        generations=tuple(
            replace(g, until=max(g.until, until)) if g.until > row.next else g
            for g in row.generations
        ),
    )


def _passed_again(
    generations: tuple[GenerationStart, ...], offset: int
) -> tuple[GenerationStart, ...]:
    """Behind a move back: what is passed once more is so in the last generation, or later.

    Else its marker was dropped half a window after that (a millisecond early, once, in a test).
    """
    if not generations or generations[-1].offset <= offset:
        return generations
    return (*generations[:-1], replace(generations[-1], offset=offset))


def _same(s: Situation, name: str, row: Position, loud: str | None = None) -> Begin:
    position = replace(row, epoch=s.epoch)
    if s.row is None or position == replace(s.row, epoch=s.epoch):
        return Begin(name, position, write=False, loud=loud)
    # a row that has run stays one that has run
    serial = 1 if serial_of(row.commit_id) else 0
    written = commit_id(s.epoch, s.serial_base + serial)
    return Begin(name, replace(position, commit_id=written), True, loud)


def _written(name: str, s: Situation, position: Position, loud: str | None = None) -> Begin:
    """Should we die before Kafka has it, the pinned start says what this row answered."""
    foreign = s.committed and not read_witness(s.committed.metadata)
    pinned = s.committed.offset if s.committed and foreign else position.next
    written = commit_id(s.epoch, s.serial_base)
    new = replace(position, epoch=s.epoch, commit_id=written, pinned_start=pinned)
    return Begin(name, new, write=True, loud=loud)


def _same_topic(one: bytes, other: bytes) -> bool:
    """A broker without topic ids (the mock) cannot contradict."""
    return one == other or NO_ID in (one, other)


def _short(store_id: bytes) -> str:
    return store_id.hex()[:8]
