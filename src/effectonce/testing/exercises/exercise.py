"""`exercise`: a user's handler through every crash point and every ending of a call.

1  an undisturbed run lists the steps, and says what the effects should be
2  another one must come to the same: else something is left over from the first
3  every record delivered twice, at once and later
4  each step once more for each of its endings (steps.py)
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from effectonce.errors import ConfigError
from effectonce.handlers import Handler, check_handler
from effectonce.hooks import get_hooks, set_hooks
from effectonce.once import Once
from effectonce.policy import OnUnidentified
from effectonce.settings import topic_problems
from effectonce.testing.exercises.case import Case, Change, HandlerRun, RowChange
from effectonce.testing.exercises.report import Report
from effectonce.testing.exercises.samples import Sample, id_problems, samples_of
from effectonce.testing.exercises.steps import Ending, Script, Step
from effectonce.testing.exercises.world import PerProcess, Setup, Target, World


def exercise(
    handler: Handler | PerProcess,
    records: Sequence[Sample | tuple[str, Any] | dict[str, Any]],
    once: Once,
    *,
    target: Target | None = None,
    topic: str = "exercised",
) -> Report:
    """Run `handler` over `records` with everything going wrong once, everywhere; judge its effects.

    handler: as `OnceConsumer.run` takes it, or `PerProcess(make)`. records: two or three are best.
    once: yours; its store is not touched, one in memory stands in. target: the other side; needed
    for effects outside, and for in-store handlers that should have none there.

    Raises ConfigError for what cannot be exercised, all problems at once, and what the handler
    itself raises where nothing has gone wrong.
    """
    setup = _checked(handler, records, once, target, topic)
    with _quiet():
        return _exercised(setup)


def _exercised(setup: Setup) -> Report:
    samples = setup.samples
    first = World(setup, samples, Script())
    if not first.run():
        raise _undisturbed_failure(first)
    judge = _Judge(setup, first)
    if problem := _unjudged(setup, judge):
        raise ConfigError([problem])
    cases = [judge.case("undisturbed", first, True)]
    cases.append(judge.judged("undisturbed, once more", samples))
    if cases[-1].ok:  # else every case would start from leftovers
        cases += _copies(judge, samples)
        cases += _faults(judge, samples, first.script)
    fired = Counter(case.ending for case in cases if case.ending is not None and case.fired)
    return Report(tuple(cases), setup.once.in_store, tuple(s.id for s in samples), dict(fired))


def _unjudged(setup: Setup, judge: _Judge) -> str | None:
    """Why the rest would prove nothing."""
    if judge.effects or (setup.once.in_store and judge.rows):
        return None
    if setup.once.in_store:
        return (
            "after an undisturbed run neither the `tx` nor the target has anything, so nothing can "
            "be judged: the handler's effects go elsewhere; pass target="
        )
    return (
        "target: effects() is empty after an undisturbed run, so nothing can be judged: the "
        "handler's effects go elsewhere, or it remembers these records from before"
    )


def _copies(judge: _Judge, samples: Sequence[Sample]) -> Iterator[Case]:
    if judge.protected:
        doubled = [sample for sample in samples for _ in range(2)]
        yield judge.judged("every record delivered twice in a row", doubled)
        yield judge.judged("all records delivered again behind the last", [*samples, *samples])


def _faults(judge: _Judge, samples: Sequence[Sample], script: Script) -> Iterator[Case]:
    for number, (step, endings) in enumerate(script.steps):
        for ending in endings:
            yield judge.judged(
                _name(step, ending), samples, Script(number, ending), step=step, ending=ending
            )


class _Judge:
    """Compares a case with the undisturbed run."""

    def __init__(self, setup: Setup, undisturbed: World) -> None:
        self._setup = setup
        self._began_with = undisturbed.began_with
        self.effects = undisturbed.effects()
        self.rows = undisturbed.rows()
        self.protected = setup.once.on_unidentified is not OnUnidentified.PROCESS

    def judged(
        self,
        name: str,
        samples: Sequence[Sample],
        script: Script | None = None,
        *,
        step: Step | None = None,
        ending: Ending | None = None,
    ) -> Case:
        world = World(self._setup, samples, script or Script())
        ended = world.run()
        if world.began_with != self._began_with:  # a keyed target would hide any loss behind it
            odd = world.began_with - self._began_with or self._began_with - world.began_with
            left = sorted(map(str, odd))
            raise ConfigError(
                [f"target: reset() does not forget: effects() still has {', '.join(left[:3])}"]
            )
        return self.case(name, world, ended, step, ending)

    def case(
        self,
        name: str,
        world: World,
        ended: bool,
        step: Step | None = None,
        ending: Ending | None = None,
    ) -> Case:
        runs = tuple(
            HandlerRun(run.sample, run.member, run.maybe_repeated, run.returned)
            for run in world.runs
        )
        changes = sorted(_changes(self.effects, world.effects()), key=lambda c: str(c.effect))
        lost = tuple(change for change in changes if change.found < change.expected)
        repeated = tuple(change for change in changes if change.found > change.expected)
        rows = tuple(_row_changes(self.rows, world.rows())) if self._setup.once.in_store else ()
        stuck = "" if ended else _last_words(world)
        again = len({run.sample for run in runs}) < len(runs)
        return Case(
            name=name,
            step=step,
            ending=ending,
            fired=ending is None or world.script.fired == step,
            runs=runs,
            lost=lost,
            repeated=repeated,
            differing=rows,
            stuck=stuck,
            allowed=not (lost or rows or stuck) and (not repeated or again),
        )


def _changes(expected: Counter[Hashable], found: Counter[Hashable]) -> Iterator[Change]:
    for effect in expected.keys() | found.keys():
        if expected[effect] != found[effect]:
            yield Change(effect, expected[effect], found[effect])


def _row_changes(expected: dict[bytes, bytes], found: dict[bytes, bytes]) -> Iterator[RowChange]:
    for row in sorted(expected.keys() | found.keys()):
        if expected.get(row) != found.get(row):
            yield RowChange(row, expected.get(row), found.get(row))


def _name(step: Step, ending: Ending) -> str:
    what = step.call or step.what
    about = f" of {', '.join(step.about)}" if step.about else ""
    return f"{what}{about}: {ending.value}"


def _last_words(world: World) -> str:
    return str(world.errors[-1]) if world.errors else "no member came to the end, and none said why"


def _undisturbed_failure(world: World) -> Exception:
    if not world.errors:
        return RuntimeError("exercise: an undisturbed run did not come to its end")
    error = world.errors[0]
    error.add_note("exercise: nothing had gone wrong yet; mend the handler, or the records")
    return error


# -- what cannot be exercised --------------------------------------------------------------------


def _checked(handler: object, records: object, once: object, target: object, topic: str) -> Setup:
    problems = list(topic_problems([topic]))
    samples = samples_of(records, problems)
    problems += _target_problems(target, once)
    if isinstance(once, Once):
        problems += _handler_problems(handler, once)
        if samples and once.on_unidentified is not OnUnidentified.PROCESS:
            problems += id_problems(samples, topic, once.identity)
    else:
        problems.append(f"once: an effectonce.Once, not {type(once).__name__}")
    if problems:
        raise ConfigError(problems)
    return Setup(handler, samples, once, target, topic)  # type: ignore[arg-type]


def _handler_problems(handler: object, once: Once) -> Iterator[str]:
    if isinstance(handler, PerProcess):
        make: object = handler.make
        if not callable(make):
            yield f"PerProcess({make!r}): a function without arguments that makes a handler"
            return
        handler = make()
    try:
        check_handler(handler, "event", in_store=once.in_store)
    except ConfigError as error:
        yield from error.problems


def _target_problems(target: object, once: object) -> Iterator[str]:
    if target is None:
        if isinstance(once, Once) and not once.in_store:
            yield "target: effects are outside, so say where: an object with reset() and effects()"
    elif isinstance(target, type) or not isinstance(target, Target):
        yield f"target={target!r}: an object with reset() and effects()"


@contextmanager
def _quiet() -> Iterator[None]:
    """No log, hooks or metrics of simulated outages; and chance is the same each time."""
    log = logging.getLogger("effectonce")
    level, hooks, state = log.level, get_hooks(), random.getstate()
    log.setLevel(logging.CRITICAL + 1)
    set_hooks([])
    random.seed(0)
    try:
        yield
    finally:
        log.setLevel(level)
        set_hooks(hooks)
        random.setstate(state)
