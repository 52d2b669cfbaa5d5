"""Cases in plain words: what went wrong where, how the handler was called, and what to do.

Cases that differ in the record alone are told once; of each ending the one that says most is told
in full.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from textwrap import wrap
from typing import Final

from effectonce.testing.exercises.case import Case, HandlerRun
from effectonce.testing.exercises.steps import ERRORS, FREEZES, Ending

WIDTH: Final = 96
LINES: Final = 4
"""Lines a case; what else is wrong in it is counted."""

TOLD: Final = (
    *(Ending.KILLED_AFTER, Ending.UNANSWERED, Ending.FAILED, Ending.FROZEN_AFTER),
    *(Ending.FROZEN_BEFORE, Ending.KILLED_BEFORE, Ending.REVOKED),
)
"""The order of telling: what needs the least explanation comes first."""

WHAT: Final = {
    "handler": "the handler",
    "kafka.close": "leaving the group",
    "kafka.commit": "telling Kafka the offset",
    "kafka.committed": "asking Kafka for the group's offset",
    "kafka.fetch": "a poll",
    "kafka.log_ends": "asking for the ends of the log",
    "kafka.seek": "the seek to the first record",
    "kafka.topic_ids": "asking for the topic's id",
    "store.commit": "the commit of the marker",
    "store.lookup": "the look-up of the next records",
    "store.note": "a note of the position in the store",
    "store.open": "opening the partition in the store",
    "store.release": "giving the partition up",
}

HARMS: Final = {
    "LOST": "an effect is missing that an undisturbed run has",
    "REPEATED": "an effect happened more often than in an undisturbed run",
    "DIFFERENT": "rows of the `tx` are not as after an undisturbed run",
    "STUCK": "no process came to the end of the log",
}


def explain(cases: Sequence[Case], samples: Sequence[str], *, in_store: bool) -> str:
    """The whole text; the advice comes last, where a terminal leaves it in sight."""
    bad = [case for case in cases if not case.ok]
    unfired = sum(not case.fired for case in cases)
    count = len(cases) - unfired
    well = sum(case.ok and case.fired for case in cases)
    in_them = "in all of them" if well == count else f"in {well} of them"
    lines = _wrapped(
        f"{_number(len(samples), 'record')}, {_number(count, 'case')} (every crash point, "
        f"every ending of a call): {in_them} the effects are those of an undisturbed run."
    )
    for harm, meaning in HARMS.items():
        harmed = [case for case in bad if harm in _harms(case)]
        if harmed:
            lines += ["", f"{harm} in {_number(len(harmed), 'case')}: {meaning}."]
            lines += _told(harmed)
    if advice := list(_advice(bad, in_store=in_store)):
        lines += ["", "What to do:"]
        for each in advice:
            lines += _wrapped(each, "- ")
    if unfired:
        lines += ["", f"NOT TRIED: {_number(unfired, 'case')} did not come about."]
        lines += _wrapped(
            "The handler took other steps than in the undisturbed run: time, chance, or something "
            "that it remembers (a cache that was filled by then?). With PerProcess(make) what it "
            "remembers dies with its process.",
            "  ",
        )
    return "\n".join(lines)


def _harms(case: Case) -> Iterator[str]:
    if case.lost:
        yield "LOST"
    if case.repeated:
        yield "REPEATED"
    if case.differing:
        yield "DIFFERENT"
    if case.stuck:
        yield "STUCK"


def _told(cases: Sequence[Case]) -> Iterator[str]:
    """For each ending the case that says most; the others in one line."""
    kinds: dict[str, list[Case]] = {}
    for case in sorted(cases, key=_rank):
        kinds.setdefault(situation(case, brief=True), []).append(case)
    shown: set[object] = set()
    others: list[str] = []
    for brief, like in kinds.items():
        first = like[0]
        if (first.ending or brief) in shown:
            others.append(brief)
            continue
        shown.add(first.ending or brief)
        yield from _wrapped(f"{_capital(situation(first))}.", "  ")
        happened = list(_changes(first))
        for line in happened[:LINES]:
            yield from _wrapped(line, "      ")
        if len(happened) > LINES:
            yield f"      and {len(happened) - LINES} more"
    if others:
        yield from _wrapped(f"And: {'; '.join(others)}.", "  ")


def _rank(case: Case) -> tuple[int, int]:
    """What happens in the handler says most, and of that what happens after an effect."""
    places = ("call", "handler", "store.commit")
    place = case.step.what if case.step is not None else ""
    ending = TOLD.index(case.ending) if case.ending is not None else 0
    return ending, places.index(place) if place in places else len(places)


def situation(case: Case, *, brief: bool = False) -> str:
    """What befell the process, as a sentence without its full stop."""
    step, ending = case.step, case.ending
    if step is None or ending is None:
        return case.name
    if not case.fired:
        return "the handler took other steps than in the undisturbed run"
    what = step.call or WHAT.get(step.what, step.what)
    if step.about and not brief:
        what += f" for {', '.join(step.about)}"
    if step.in_handler and ending in ERRORS:
        name = {Ending.FAILED: "ConnectionRefusedError", Ending.UNANSWERED: "TimeoutError"}[ending]
        did = {Ending.FAILED: "nothing", Ending.UNANSWERED: "all of it"}[ending]
        return f"{what} raised {name} and had done {did}"
    marked = ", before the marker was committed" if step.in_handler else ", before its answer came"
    took_over = " while another process took over; then it went on"
    if brief:
        marked = took_over = ""
    return {
        Ending.KILLED_BEFORE: f"killed before {what}",
        Ending.KILLED_AFTER: f"killed after {what}{marked}",
        Ending.FAILED: f"{what} failed, and did nothing",
        Ending.UNANSWERED: f"{what} was done, and its answer was lost",
        Ending.FROZEN_BEFORE: f"frozen before {what}{took_over}",
        Ending.FROZEN_AFTER: f"frozen after {what}{took_over}",
        Ending.REVOKED: f"{what} gave the partition to another process, and then back",
    }[ending]


def _changes(case: Case) -> Iterator[str]:
    """How the handler was called for what is wrong, and what came of it."""
    samples = dict.fromkeys(run.sample for run in case.runs)
    named = False
    for change in [*case.lost, *case.repeated]:
        result = f"took effect {_times(change.found)} instead of {_times(change.expected)}"
        if isinstance(change.effect, str) and change.effect in samples:
            named = True
            yield f"{change.effect} {_history(case.runs, change.effect)}: it {result}"
        else:
            yield f"{change.effect!r} {result}"
    for row in case.differing:
        yield f"row {row.row!r} is {row.found!r} instead of {row.expected!r}"
    if not named:
        about = case.step.about if case.step is not None and case.step.in_handler else ()
        for sample in dict.fromkeys([*about, *case.run_again()]):
            yield f"{sample} {_history(case.runs, sample)}"
    if case.stuck:
        yield case.stuck


def _history(runs: Sequence[HandlerRun], sample: str) -> str:
    mine = [run for run in runs if run.sample == sample]
    if not mine:
        return "did not run"
    told, former = "ran", 0
    for number, run in enumerate(mine):
        same = "the same process" if run.process == former else f"process {run.process}"
        told += f", and again in {same}" if number else f" in {same}"
        if number or run.maybe_repeated:
            told += f" with maybe_repeated={run.maybe_repeated}"
        former = run.process
    return told


# -- what to do ------------------------------------------------------------------------------------


def _advice(bad: Sequence[Case], *, in_store: bool) -> Iterator[str]:
    leftover = next((case for case in bad if case.step is None and "once more" in case.name), None)
    if leftover is not None:
        yield (
            "Two undisturbed runs differ, so no crash was tried: something is left over from the "
            "first. If the handler remembers (a variable of its module, a closure), pass "
            "PerProcess(make): then what it remembers dies with its process, as in a crash. Else "
            "let the target's reset() forget everything, and keep time and chance out of the "
            "effects."
        )
        return
    lost = [case for case in bad if case.lost]
    if any(map(_swallowed, lost)):
        yield (
            "The handler caught an error and returned, and what returns is marked as done: let "
            "errors out, and the event runs again."
        )
    if any(map(_believed, lost)):
        yield (
            "maybe_repeated=True says that the event *may* have run; it may as well be its first "
            "run. Skip nothing because of it."
        )
    elif any(not _swallowed(case) for case in lost):
        yield (
            "A second run must finish what the first began: does the handler note that an event is "
            "done before it is? Leave that note to effectonce."
        )
    repeated = [case for case in bad if case.repeated]
    if repeated:
        yield from _advice_on_repeats(repeated, in_store=in_store)
    if any(case.differing for case in bad):
        yield (
            "A run that was rolled back has left something in the handler's memory (a cache, a "
            "counter). Read from the `tx` whatever decides what is written to it."
        )


def _advice_on_repeats(repeated: Sequence[Case], *, in_store: bool) -> Iterator[str]:
    if in_store:
        yield (
            "What the target saw was not written through the `tx`, so it does not commit with the "
            'marker. Write it through the `tx`, or use Outside(on_doubt="repeat") and idempotency '
            "keys."
        )
        return
    yield (
        'Outside(on_doubt="repeat") loses nothing, so in doubt it runs an event again. Give the '
        'other side event.key_for("...") as its idempotency key: it is the same on every run, '
        "and the second one is answered there."
    )
    if all(case.ending in FREEZES for case in repeated):
        yield (
            "To ask first is not enough: between the question and the effect another process can "
            "do both. Only the other side can ask and act at once."
        )
    unwarned = sum(map(_is_unwarned, repeated))
    if unwarned:
        yield (
            f"event.maybe_repeated is no guard: in {unwarned} of these cases a second run had it "
            "False. A process that was frozen is not told of what ran meanwhile."
        )


def _swallowed(case: Case) -> bool:
    """An error inside of the handler, which returned all the same."""
    if case.step is None or case.step.what != "call" or case.ending not in ERRORS:
        return False
    mine = [run for run in case.runs if run.sample in case.step.about]
    return len(mine) == 1 and mine[0].returned


def _believed(case: Case) -> bool:
    """A first run that was told it may be a repeat, and what it should have done is missing."""
    first: dict[str, HandlerRun] = {}
    for run in case.runs:
        first.setdefault(run.sample, run)
    missing = {change.effect for change in case.lost}
    named = [run for sample, run in first.items() if sample in missing]
    return any(run.maybe_repeated for run in named or first.values())


def _is_unwarned(case: Case) -> bool:
    counts: Counter[str] = Counter()
    for run in case.runs:
        counts[run.sample] += 1
        if counts[run.sample] > 1 and not run.maybe_repeated:
            return True
    return False


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _wrapped(text: str, indent: str = "") -> list[str]:
    hanging = " " * (len(indent) + 2 if indent.isspace() else len(indent))
    return wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=hanging, break_on_hyphens=False
    )


def _times(count: int) -> str:
    return {0: "0 times", 1: "once", 2: "twice"}.get(count, f"{count} times")


def _capital(text: str) -> str:
    """A sentence's first letter, unless it is a name of the user's."""
    first = text.split(" ", 1)[0]
    return text if "." in first or "_" in first else text[:1].upper() + text[1:]
