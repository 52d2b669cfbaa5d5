"""`exercise`: right handlers pass it, wrong ones do not, and everything that may go wrong does."""

from __future__ import annotations

import logging
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial, wraps
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

import effectonce as eo
from effectonce.desk import Desk
from effectonce.errors import ConfigError, HandlerFailed
from effectonce.event import Work
from effectonce.handlers import Handler
from effectonce.model import OnExisting, Partition
from effectonce.owned import Owned
from effectonce.stores import memory
from effectonce.stores.memory import MemoryStore
from effectonce.testing import Case, PerProcess, Report, Sample, exercise
from effectonce.testing.exercises.ports import TOPIC_ID, Cluster, MemberStore
from effectonce.testing.exercises.steps import Ending
from effectonce.testing.exercises.words import WHAT, situation
from tests.exercises import bank as handlers
from tests.exercises.bank import RECORDS, Database, bank, in_store, outside

STORES = {"shared": "memory:", "embedded": "rocksdb:never-made"}


def runs_of(case: Case, sample: str) -> list[tuple[int, bool, bool]]:
    return [
        (run.process, run.maybe_repeated, run.returned) for run in case.runs if run.sample == sample
    ]


def in_one_line(report: Report) -> str:
    return " ".join(report.explain().split())


def case_of(report: Report, what: str, ending: Ending, sample: str = "e1") -> Case:
    (found,) = (
        case
        for case in report.cases
        if case.step is not None
        and what in (case.step.what, case.step.call)
        and case.ending is ending
        and sample in case.step.about
    )
    return found


# -- right handlers --------------------------------------------------------------------------------


@pytest.mark.parametrize("store", STORES.values(), ids=STORES)
@pytest.mark.parametrize(
    "handler", [handlers.with_a_key, handlers.retries_by_itself], ids=lambda h: h.__name__
)
def test_a_right_handler_outside_would_be_accused(store: str, handler: Handler) -> None:
    report = exercise(handler, RECORDS, outside(store), target=bank)
    assert report.ok, report.explain()
    assert report.check() is report
    assert len(report.cases) > 100


@pytest.mark.parametrize("store", STORES.values(), ids=STORES)
def test_a_right_handler_in_the_store_would_be_accused(store: str) -> None:
    report = exercise(handlers.adds_up, RECORDS, in_store(store))
    assert report.ok, report.explain()


def test_a_handler_with_a_connection_would_be_accused_for_what_its_twin_does_with_it() -> None:
    with closing(Database()) as database:
        report = exercise(database.by_its_key, RECORDS, outside(), target=database)
    assert report.ok, report.explain()
    assert case_of(report, "Connection.execute", Ending.KILLED_AFTER).fired


def test_a_single_attempt_is_enough_where_the_next_process_makes_it_good() -> None:
    once = outside(retry=eo.Retry(attempts=1))
    exercise(handlers.with_a_key, RECORDS, once, target=bank).check()


def test_ignored_events_and_effects_that_are_counted_by_name_are_compared_as_they_are() -> None:
    class Sums(Counter[str]):
        reset = Counter[str].clear

        def effects(self) -> Counter[str]:
            return self

    sums, keys = Sums(), set[str]()

    def handler(event: eo.Event) -> object:
        if event.id == "e2":
            return eo.IGNORED
        if (key := event.key_for("sums")) not in keys:
            keys.add(key)
            sums["alice"] += 100
        return None

    def reset() -> None:
        sums.clear()
        keys.clear()

    sums.reset = reset  # type: ignore[method-assign]
    report = exercise(handler, RECORDS, outside(), target=sums)
    # between `add` and the sum lies a call of its own: a set is no bank
    assert {case.step.call for case in report.findings if case.step} == {"set.add"}
    assert report.findings[0].lost[0].expected == 200
    assert "'alice' took effect 100 times instead of 200 times" in report.explain()


# -- wrong handlers --------------------------------------------------------------------------------

WRONG: dict[str, tuple[Handler | PerProcess, str, str, Ending, str]] = {
    "without a key": (
        handlers.without_a_key, "REPEATED", "Bank.charge", Ending.KILLED_AFTER, "event.key_for(",
    ),
    "without a key, and its answer is lost": (
        handlers.without_a_key, "REPEATED", "Bank.charge", Ending.UNANSWERED, "event.key_for(",
    ),
    "asks first": (
        handlers.asks_first, "REPEATED", "Bank.has", Ending.FROZEN_AFTER, "To ask first",
    ),
    "makes its key anew at each run": (
        handlers.makes_a_key_a_run, "REPEATED", "Bank.charge", Ending.KILLED_AFTER, "same on every",
    ),
    "trusts maybe_repeated to tell it of every repeat": (
        handlers.asks_where_it_may_be_repeated,
        "REPEATED", "handler", Ending.FROZEN_BEFORE, "A process that was frozen is not told",
    ),
    "takes maybe_repeated for a repeat": (
        handlers.skips_where_it_may_be_repeated,
        "LOST", "Bank.charge", Ending.KILLED_BEFORE, "*may* have run",
    ),
    "swallows an error": (
        handlers.swallows, "LOST", "Bank.charge", Ending.FAILED, "let errors out",
    ),
    "remembers what it has done": (
        PerProcess(handlers.remembers), "REPEATED", "set.add", Ending.KILLED_BEFORE, "key_for(",
    ),
    "remembers what it is about to do": (
        PerProcess(handlers.remembers_first),
        "LOST", "Bank.charge", Ending.FAILED, "Leave that note to effectonce",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("handler", "harm", "call", "ending", "advice"), WRONG.values(), ids=WRONG)
def test_a_handler_is_wrong_and_nobody_says_so(
    handler: Handler | PerProcess, harm: str, call: str, ending: Ending, advice: str
) -> None:
    report = exercise(handler, RECORDS, outside(), target=bank)
    for sample in ("e1", "e2", "e3"):
        case = case_of(report, call, ending, sample)
        changes = case.repeated if harm == "REPEATED" else case.lost
        assert sample in [change.effect for change in changes], case
    text = report.explain()
    assert harm in text
    assert advice in " ".join(text.split())
    with pytest.raises(AssertionError) as raised:
        report.check()
    assert str(raised.value) == text


def test_an_effect_beside_the_tx_is_not_seen() -> None:
    report = exercise(handlers.charges_beside_its_tx, RECORDS, in_store(), target=bank)
    case = case_of(report, "tx.put", Ending.KILLED_BEFORE)
    assert [change.effect for change in case.repeated] == ["e1"]
    assert not case.differing
    assert "not written through the `tx`" in in_one_line(report)


def test_a_cache_that_outlives_a_rollback_is_not_seen() -> None:
    report = exercise(PerProcess(handlers.caches), RECORDS, in_store())
    case = case_of(report, "handler", Ending.UNANSWERED)
    assert [(c.row, c.expected, c.found) for c in case.differing] == [(b"sum", b"6", b"7")]
    assert "Read from the `tx`" in report.explain()


def test_a_handler_that_remembers_beyond_reset_would_pass_everything() -> None:
    report = exercise(handlers.remembers(), RECORDS, outside(), target=bank)
    assert [case.name for case in report.findings] == ["undisturbed, once more"]
    assert len(report.cases) == 2
    assert "PerProcess(make)" in report.explain()


def test_what_was_never_tried_would_pass_for_well() -> None:
    cache: dict[str, str] = {}

    def load(currency: str) -> str:
        return currency

    def caches(event: eo.Event) -> None:
        if "eur" not in cache:
            cache["eur"] = load("eur")
        bank.charge(event.id, event.key_for("bank"))

    report = exercise(caches, RECORDS, outside(), target=bank)
    assert {case.step.call for case in report.untried if case.step} >= {"load"}
    assert not report.findings
    assert not report.ok
    tried = len(report.cases) - len(report.untried)
    with pytest.raises(AssertionError, match=f"{tried} cases .*in all of them") as failed:
        report.check()
    assert f"NOT TRIED: {len(report.untried)} cases did not come about" in str(failed.value)

    class Loads:
        def __init__(self) -> None:
            self.cache: dict[str, str] = {}

        def __call__(self, event: eo.Event) -> None:
            if "eur" not in self.cache:
                self.cache["eur"] = load("eur")
            bank.charge(event.id, event.key_for("bank"))

    exercise(PerProcess(Loads), RECORDS, outside(), target=bank).check()


def test_what_processes_share_outlives_a_kill_and_what_each_makes_dies_with_it() -> None:
    seen: set[str] = set()

    class Both(handlers.Bank):
        def reset(self) -> None:
            super().reset()
            seen.clear()

    both = Both()

    def remembers_first(event: eo.Event) -> None:
        if event.id not in seen:
            seen.add(event.id)
            both.charge(event.id, event.key_for("bank"))

    shared = exercise(remembers_first, RECORDS, outside(), target=both)
    kept = case_of(shared, "set.add", Ending.KILLED_AFTER)
    assert [change.effect for change in kept.lost] == ["e1"]
    text = in_one_line(shared)
    assert "Leave that note to effectonce" in text
    assert "*may* have run" not in text, "e2 and e3 were told so, and nothing of them is missing"

    own = exercise(PerProcess(handlers.remembers_first), RECORDS, outside(), target=bank)
    assert case_of(own, "set.add", Ending.KILLED_AFTER).ok


@pytest.mark.parametrize(
    "handler",
    [handlers.asks_first, handlers.asks_where_it_may_be_repeated],
    ids=lambda h: h.__name__,
)
def test_an_embedded_store_keeps_the_frozen_owners_lock_so_to_ask_first_is_enough_there(
    handler: Handler,
) -> None:
    """Its promise would look worse than it is: the successor waits for the LOCK."""
    report = exercise(handler, RECORDS, outside(STORES["embedded"]), target=bank)
    assert report.ok, report.explain()
    assert report.fired[Ending.FROZEN_AFTER] > 10


@pytest.mark.parametrize("store", STORES.values(), ids=STORES)
def test_only_a_zombie_is_not_told_that_its_event_may_have_run(store: str) -> None:
    report = exercise(handlers.without_a_key, RECORDS, outside(store), target=bank)
    untold = {
        case.ending
        for case in report.cases
        for sample in case.run_again()
        if not runs_of(case, sample)[-1][1]
    }
    zombies = {Ending.FROZEN_BEFORE, Ending.FROZEN_AFTER} if store == STORES["shared"] else set()
    assert untold == zombies
    assert ("is no guard" in report.explain()) is bool(zombies)
    for ending in (Ending.FAILED, Ending.UNANSWERED):
        retried = case_of(report, "Bank.charge", ending)
        assert runs_of(retried, "e1") == [(1, False, False), (1, True, True)]


def test_a_handler_that_fails_for_ever_once_it_may_be_repeated_holds_the_partition() -> None:
    def handler(event: eo.Event) -> None:
        if event.maybe_repeated:
            raise ValueError("again?")
        bank.charge(event.id, event.key_for("bank"))

    report = exercise(handler, RECORDS, outside(), target=bank)
    case = case_of(report, "handler", Ending.KILLED_BEFORE)
    assert "the handler failed 5 times" in case.stuck
    assert not case.allowed
    assert "STUCK" in report.explain()


# -- everything that may go wrong does -------------------------------------------------------------


@pytest.mark.parametrize("once", [outside(), in_store()], ids=["outside", "in-store"])
def test_every_ending_of_every_step_befalls_it(once: eo.Once) -> None:
    handler: Handler = handlers.adds_up if once.in_store else handlers.with_a_key
    report = exercise(handler, RECORDS, once, target=None if once.in_store else bank)
    assert all(case.fired for case in report.cases)
    assert set(report.fired) == set(Ending)
    assert sum(report.fired.values()) == len(report.cases) - 4  # two undisturbed, two with copies
    met = {case.step.what for case in report.cases if case.step is not None}
    assert met == {*WHAT, "call"}


def test_who_is_killed_runs_no_further_and_another_begins_where_the_store_stands() -> None:
    report = exercise(handlers.with_a_key, RECORDS, outside(), target=bank)
    assert runs_of(case_of(report, "Bank.charge", Ending.KILLED_BEFORE), "e1") == [
        (1, False, False),
        (2, True, True),
    ]
    marked = case_of(report, "store.commit", Ending.KILLED_AFTER)
    assert runs_of(marked, "e1") == [(1, False, True)]
    unmarked = case_of(report, "store.commit", Ending.KILLED_BEFORE)
    assert runs_of(unmarked, "e1") == [(1, False, True), (2, True, True)]


def test_a_lost_answer_to_a_commit_runs_nothing_again() -> None:
    report = exercise(handlers.with_a_key, RECORDS, outside(), target=bank)
    commits = [
        case
        for case in report.cases
        if case.step is not None
        and case.step.what in ("store.commit", "kafka.commit")
        and case.ending in (Ending.FAILED, Ending.UNANSWERED)
    ]
    assert len(commits) > 6
    assert not [case for case in commits if case.run_again()]


def test_who_is_frozen_goes_on_where_it_stood_after_another_took_over() -> None:
    report = exercise(handlers.without_a_key, RECORDS, outside(), target=bank)
    zombie = case_of(report, "handler", Ending.FROZEN_BEFORE)
    assert runs_of(zombie, "e1") == [(2, True, True), (1, False, True)]
    assert runs_of(zombie, "e3") == [(2, True, True)]


def test_an_epoch_that_kafka_has_seen_would_be_handed_out_again() -> None:
    store = MemoryStore()
    member = MemberStore(
        Mock(**{"enter.return_value": None}), Cluster("t", (), store), store.traits
    )
    assert member.open(Partition("s", "g", "t", 0), TOPIC_ID, above=7).epoch == 8


def test_what_is_delivered_again_is_not_run_again() -> None:
    report = exercise(handlers.without_a_key, RECORDS, outside(), target=bank)
    copies = [case for case in report.cases if "delivered" in case.name]
    assert len(copies) == 2
    for case in copies:
        assert case.ok
        assert len(case.runs) == 3


def test_unprotected_records_are_not_delivered_again() -> None:
    once = outside(on_unidentified="process")
    records = [Sample("e1", b"1", headers={}), Sample("e2", b"2", headers={})]

    def handler(event: eo.Event) -> None:
        bank.charge(str(event.offset), str(event.offset))

    report = exercise(handler, records, once, target=bank)
    assert report.ok, report.explain()
    assert not [case for case in report.cases if "delivered" in case.name]


# -- which calls are steps -------------------------------------------------------------------------


def calls_of(handler: Handler, once: eo.Once | None = None) -> list[str]:
    report = exercise(handler, RECORDS[:1], once or outside(), target=bank)
    calls = [c.step.call for c in report.cases if c.step is not None and c.step.what == "call"]
    return list(dict.fromkeys(calls))


def helper(event: eo.Event, amount: int) -> object:
    bank.charge(event.id, event.key_for("bank"))
    return {"amount": amount}


class Charger:
    def __call__(self, event: eo.Event) -> None:
        helper(event, 1)


def decorated(function: Callable[[eo.Event], None]) -> Callable[[eo.Event], None]:
    @wraps(function)
    def wrapper(*args: Any) -> None:
        function(*args)

    return wrapper


@decorated
def wrapped(event: eo.Event) -> None:
    helper(event, 1)


HANDLERS: dict[str, Handler] = {
    "a function": handlers.with_a_key,
    "an object": Charger(),
    "a method": Charger().__call__,
    "a partial": partial(helper, amount=1),
    "a lambda": lambda event: helper(event, 1),
    "a decorated one": wrapped,
    "a comprehension": lambda event: [helper(event, n) for n in (1,)],
}


@pytest.mark.parametrize("handler", HANDLERS.values(), ids=HANDLERS)
def test_the_calls_of_some_handler_are_not_seen(handler: Handler) -> None:
    assert calls_of(handler) == ["Bank.charge"]


def test_what_nobody_else_can_see_is_no_step_and_what_only_computes_is_not_taken_for_io() -> None:
    log = logging.getLogger("of the handler")
    unpaid: list[str] = []

    def handler(event: eo.Event) -> None:
        log.debug("%s %s", event, len(str(event.json())))
        unpaid.append(event.id)
        bank.charge(event.id, event.key_for("bank"))

    report = exercise(handler, RECORDS[:1], outside(), target=bank)
    endings = {
        (case.step.call, case.ending)
        for case in report.cases
        if case.step is not None and case.step.call
    }
    assert {call for call, _ in endings} == {"list.append", "Bank.charge"}
    assert ("list.append", Ending.FAILED) not in endings
    assert ("Bank.charge", Ending.FAILED) in endings


def test_the_tx_is_no_network() -> None:
    def handler(event: eo.Event, tx: eo.KeyValueTx) -> None:
        tx.put(event.id.encode(), tx.get(b"x") or b"1")

    report = exercise(handler, RECORDS[:1], in_store())
    endings = Counter(c.ending for c in report.cases if c.step is not None and c.step.call)
    assert endings.keys() == {
        Ending.KILLED_BEFORE, Ending.KILLED_AFTER, Ending.FROZEN_BEFORE, Ending.FROZEN_AFTER,
    }  # fmt: skip


# -- in words --------------------------------------------------------------------------------------


def test_each_step_and_ending_has_words_of_its_own() -> None:
    report = exercise(handlers.asks_first, RECORDS, outside(), target=bank)
    texts = [situation(case) for case in report.cases]
    assert all(case.step.what in {*WHAT, "call"} for case in report.cases if case.step)
    assert "killed after Bank.charge for e2, before the marker was committed" in texts
    assert "killed before the commit of the marker for e1, e2" in texts
    assert "a poll gave the partition to another process, and then back" in texts
    assert "Bank.has for e1 raised TimeoutError and had done all of it" in texts


def test_the_handlers_runs_are_told_with_what_it_was_told() -> None:
    report = exercise(handlers.without_a_key, RECORDS, outside(), target=bank)
    text = in_one_line(report)
    assert (
        "Killed after Bank.charge for e1, before the marker was committed. e1 ran in process 1, "
        "and again in process 2 with maybe_repeated=True: it took effect twice instead of once"
    ) in text
    assert "e1 ran in process 1, and again in the same process with maybe_repeated=True" in text
    assert (
        "e1 ran in process 2 with maybe_repeated=True, and again in process 1 with "
        "maybe_repeated=False"
    ) in in_one_line(
        exercise(handlers.asks_where_it_may_be_repeated, RECORDS, outside(), target=bank)
    )


def test_repeats_that_do_no_harm_can_be_allowed_and_losses_cannot() -> None:
    repeats = exercise(handlers.without_a_key, RECORDS, outside(), target=bank)
    assert all(case.allowed for case in repeats.findings)
    assert repeats.check(may_repeat=True) is repeats
    losses = exercise(handlers.swallows, RECORDS, outside(), target=bank)
    assert not any(case.allowed for case in losses.findings)
    with pytest.raises(AssertionError, match="LOST in 3 cases"):
        losses.check(may_repeat=True)


# -- in good order ---------------------------------------------------------------------------------

SCRIPT = """
from effectonce.testing import exercise
from tests.exercises import bank
once = bank.outside()
report = exercise(bank.without_a_key, bank.RECORDS, once, target=bank.bank)
assert report == exercise(bank.without_a_key, bank.RECORDS, once, target=bank.bank)
print(*report.cases, report.explain(), sep="\\n")
"""


def test_the_same_handler_gives_the_same_report_twice_in_two_processes() -> None:
    one, other = (
        subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, check=True).stdout
        for _ in range(2)
    )
    assert one == other
    assert one.count(b"\n") > 100


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    heard: list[object] = []
    log, hooks = logging.getLogger("effectonce"), eo.hooks.get_hooks()
    eo.hooks.set_hooks([heard.append])
    profiled = sys.getprofile()
    random.seed(7)
    expected = random.random()
    random.seed(7)
    try:
        exercise(handlers.with_a_key, RECORDS, outside(f"rocksdb://{tmp_path}/db"), target=bank)
        assert len(eo.hooks.get_hooks()) == 1
    finally:
        eo.hooks.set_hooks(hooks)
    assert not heard
    assert random.random() == expected
    assert sys.getprofile() is profiled
    assert log.level == logging.NOTSET
    assert not list(tmp_path.iterdir()), "the user's store was touched"


# -- bad input -------------------------------------------------------------------------------------


def problems_of(*args: Any, **options: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as raised:
        exercise(*args, **options)
    return raised.value.problems


def test_all_that_is_wrong_is_said_at_once() -> None:
    problems = problems_of(
        lambda: None,
        [
            *(("e1", 1), ("e1", 2), 3, ("", b""), {"id": "e4", "color": 1}, ("e5", {1, 2})),
            Sample("e6", key=1),  # type: ignore[arg-type]
        ],
        outside(),
        topic="no/topic",
    )
    text = "\n".join(problems)
    for part in (
        "topic 'no/topic'", "records[2]: a Sample", "records[3]: id=''", "records[4]: a Sample",
        "records[5]: value: ", "records[6]: key=1", "the id 'e1' stands twice",
        "target: effects are outside", "handler: is called with (event)",
    ):  # fmt: skip
        assert part in text
    assert len(problems) == 9


BAD: dict[str, tuple[Callable[[], tuple[str, ...]], str]] = {
    "records that are none": (
        lambda: problems_of(handlers.with_a_key, "e1", outside(), target=bank),
        "records: a list of",
    ),
    "no records": (
        lambda: problems_of(handlers.with_a_key, [], outside(), target=bank),
        "records: at least one",
    ),
    "no once": (
        lambda: problems_of(handlers.with_a_key, RECORDS, "memory:", target=bank),
        "once: an effectonce.Once, not str",
    ),
    "a target that is none": (
        lambda: problems_of(handlers.with_a_key, RECORDS, outside(), target=[]),
        "an object with reset() and effects()",
    ),
    "a target's class": (
        lambda: problems_of(handlers.with_a_key, RECORDS, outside(), target=handlers.Bank),
        "an object with reset() and effects()",
    ),
    "a maker that makes no handler": (
        lambda: problems_of(PerProcess(lambda: None), RECORDS, outside(), target=bank),  # type: ignore[arg-type, return-value]
        "handler=None: must be callable",
    ),
    "a maker that is none": (
        lambda: problems_of(PerProcess(None), RECORDS, outside(), target=bank),  # type: ignore[arg-type]
        "PerProcess(None): a function",
    ),
    "headers without the event ID": (
        lambda: problems_of(
            handlers.with_a_key, [Sample("e1", headers={})], outside(), target=bank
        ),
        "record 'e1': `identify` finds no event ID",
    ),
    "two records with one event ID": (
        lambda: problems_of(
            handlers.with_a_key,
            [Sample("e1"), Sample("e2", headers={"event-id": "e1"})],
            outside(),
            target=bank,
        ),
        "records 'e1' and 'e2' have one event ID",
    ),
    "effects that go elsewhere": (
        lambda: problems_of(lambda event: None, RECORDS, outside(), target=handlers.Bank()),
        "effects() is empty after an undisturbed run",
    ),
    "effects in the store that go elsewhere": (
        lambda: problems_of(lambda event, tx: None, RECORDS, in_store()),
        "neither the `tx` nor the target has anything",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("problems", "text"), BAD.values(), ids=BAD)
def test_what_cannot_be_exercised_is_said_clearly(
    problems: Callable[[], tuple[str, ...]], text: str
) -> None:
    assert [each for each in problems() if text in each]


@pytest.mark.parametrize(
    ("effects", "text"),
    [
        (lambda charges: [[charge] for charge in charges], "iterable of hashable values"),
        (" ".join, "a text is one value"),
        (lambda charges: dict.fromkeys(charges, "18"), "says '18' of 'e1'"),
        (lambda charges: dict.fromkeys(charges, -100), "says -100 of 'e1'"),
    ],
    ids=["lists", "a text", "texts by name", "a debt"],
)
def test_effects_that_cannot_be_counted_are_said_clearly(
    effects: Callable[[list[str]], object], text: str
) -> None:
    class Odd(handlers.Bank):
        def effects(self) -> Any:
            return effects(self.charges)

    odd = Odd()
    (problem,) = problems_of(lambda event: odd.charge(event.id), RECORDS, outside(), target=odd)
    assert text in problem


def test_a_target_that_keeps_its_effects_when_it_is_reset_hides_every_loss() -> None:
    class Keeps(handlers.Bank):
        def reset(self) -> None:
            if not hasattr(self, "keys"):
                super().reset()

    keeps = Keeps()

    def swallows(event: eo.Event) -> None:
        with suppress(ConnectionRefusedError):
            keeps.charge(event.id, event.key_for("bank"))

    (problem,) = problems_of(swallows, RECORDS, outside(), target=keeps)
    assert problem == "target: reset() does not forget: effects() still has e1, e2, e3"


def test_a_handler_that_fails_undisturbed_is_no_finding_but_an_error() -> None:
    def handler(event: eo.Event) -> None:
        raise KeyError(event.id)

    with pytest.raises(HandlerFailed, match="offset 0") as raised:
        exercise(handler, RECORDS, outside(), target=bank)
    assert isinstance(raised.value.__cause__, KeyError)
    assert "nothing had gone wrong yet" in raised.value.__notes__[0]


@pytest.mark.parametrize(
    ("record", "value"),
    [
        (Sample("e", b"\x00"), b"\x00"),
        (("e", "text"), b"text"),
        (("e", {"a": 1}), b'{"a": 1}'),
        ({"id": "e", "value": None, "key": "k"}, None),
    ],
)
def test_a_record_arrives_as_it_was_given(record: Any, value: bytes | None) -> None:
    seen: set[tuple[bytes | None, bytes | None]] = set()

    def handler(event: eo.Event) -> None:
        seen.add((event.key, event.value))
        bank.charge(event.id, event.key_for("bank"))

    exercise(handler, [record], outside(), target=bank).check()
    assert seen == {(b"k" if isinstance(record, dict) else None, value)}


# -- the driver is the real one --------------------------------------------------------------------


def fails_quietly(work: Work, row: int, error: BaseException) -> None:
    del error
    work.done(row, None)


async def forgets(desk: Desk, owned: Owned) -> None:
    del desk
    owned.unsent = None


BROKEN: dict[str, list[tuple[object, str, object]]] = {
    "a failure counts as done": [(Work, "failed", fails_quietly)],
    "a commit without an answer is forgotten": [(Desk, "resend", forgets)],
    "what stands behind a failure is dropped": [(Desk, "_behind", lambda *_: None)],
    "neither fence nor marker stops a zombie": [
        (memory, "judge", lambda *_: None),
        (eo.Once, "on_existing", OnExisting.KEEP_FIRST),
    ],
}


@pytest.mark.parametrize("breakage", BROKEN.values(), ids=BROKEN)
def test_a_breakage_of_the_library_would_not_be_noticed(
    breakage: list[tuple[object, str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for owner, name, broken in breakage:
        monkeypatch.setattr(owner, name, broken)
    assert not exercise(handlers.adds_up, RECORDS, in_store()).ok
