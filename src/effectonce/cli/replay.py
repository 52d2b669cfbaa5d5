"""`effectonce simulate --seed N`: one seed, step by step; where it breaks, the shortest found."""

from __future__ import annotations

import shlex
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final

from rich.console import Console

from effectonce.errors import ConfigError
from effectonce.testing.simulator.mutants import MUTANTS
from effectonce.testing.simulator.shrink import Shrunk, shrink
from effectonce.testing.simulator.sweep import Where
from effectonce.testing.simulator.world import WHOLE, Cut, Report, attempt

SHORT_LINES: Final = 200
"""Of a schedule that is stuck, thousands of lines say the same."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """How a replay differs from the whole run of its seed."""

    only_faults: str | None = None
    records: int | None = None
    members: int | None = None
    mutant: str | None = None

    @property
    def is_cut(self) -> bool:
        return (self.only_faults, self.records, self.members) != (None, None, None)

    def cut(self, whole: Report) -> Cut:
        """Numbers of faults are those of the whole run, so that one comes first."""
        listed = {fault.number: fault for fault in whole.fell}
        asked = set(listed) if self.only_faults is None else numbers(self.only_faults)
        if unheard := sorted(asked - set(listed)):
            raise ConfigError([f"--only-faults: seed {whole.seed} has no faults {unheard}"])
        return Cut(
            tuple(listed[number] for number in sorted(asked)),
            self.records or WHOLE.records,
            self.members or WHOLE.members,
        )

    def breakage(self) -> AbstractContextManager[object]:
        if self.mutant is None:
            return nullcontext()
        for mutant in MUTANTS:
            if mutant.name == self.mutant:
                return mutant.broken()
        names = "; ".join(sorted(mutant.name for mutant in MUTANTS))
        raise ConfigError([f"--mutant: there is no {self.mutant!r}; there are: {names}"])


def numbers(text: str) -> set[int]:
    """`12,40`, or `none`."""
    if text == "none":
        return set()
    try:
        return {int(number) for number in text.split(",")}
    except ValueError:
        raise ConfigError([f"--only-faults: {text!r} is not like 12,40 and not none"]) from None


def replay(console: Console, seed: int, where: Where, wanted: Wanted) -> int:
    """Print each timeline; 1 if an invariant broke."""
    if wanted.only_faults is not None and len(where.modes) * len(where.reaches) > 1:
        raise ConfigError(["--only-faults: a fault's number is one run's: add --mode and --store"])
    broken: list[str] = []
    runs = 0
    with wanted.breakage():
        for mode in where.modes:
            for reach in where.reaches:
                run = attempt(seed, mode, reach, timeline=not wanted.is_cut)
                if wanted.is_cut:
                    run = attempt(seed, mode, reach, cut=wanted.cut(run), timeline=True)
                tell(console, run)
                runs += 1
                broken += [
                    f"{mode.value}, {reach.value}: {violation.invariant}"
                    for violation in run.violations
                ]
                if run.violations and not wanted.is_cut:
                    tell_shortest(console, shrink(run), wanted.mutant)
    if not broken:
        console.print(f"== seed {seed}, runs {runs}: every invariant held")
    elif runs > 1:  # else it stands right above
        console.print(f"== seed {seed}, runs {runs}: BROKEN {'; '.join(broken)}", soft_wrap=True)
    return 1 if broken else 0


def tell(console: Console, run: Report, most: int | None = None) -> None:
    """One run's timeline, `most` lines of it, and what it broke."""
    console.print(
        f"== seed {run.seed}, {run.mode.value}, {run.reach.value}: faults {len(run.fell)}, "
        f"deliveries {run.deliveries}, members {run.members}"
    )
    console.print("  seconds  who      what")
    lines = list(run.timeline)
    if most is not None and len(lines) > most:
        said = f"           ... {len(lines) - most} lines left out: the command shows them all"
        lines[most * 3 // 4 : -most // 4] = [said]
    console.print(*lines, sep="\n", soft_wrap=True)
    for violation in run.violations:
        console.print(f"BROKEN {violation.invariant}: {violation.why}", soft_wrap=True)


def tell_shortest(console: Console, shrunk: Shrunk, mutant: str | None = None) -> None:
    """The command that replays it, and its timeline."""
    console.print(
        f"\nThe shortest schedule found in {shrunk.runs} runs; this replays it:\n"
        f"  {command(shrunk, mutant)}\n",
        soft_wrap=True,
    )
    tell(console, shrunk.report, SHORT_LINES)
    console.print()


def command(shrunk: Shrunk, mutant: str | None = None) -> str:
    """What replays it, for a shell."""
    broken = f" --mutant {shlex.quote(mutant)}" if mutant else ""
    return f"effectonce simulate {shrunk.options()}{broken}"
