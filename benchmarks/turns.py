"""A round in turns: all its contenders are ready, and go on by turns.

A virtual machine is now fast and now slow. Here a sum over random places in memory took 0.5 to 1.7
ms within 40 s, and its mean over half a second strayed by 37% from its mean over all; half a second
beside the next one differed by 17%. So contenders that run one after another, seconds apart, are
told apart from the machine's moods by nothing; those that take turns are.

Whose turn it is not waits for a line. (Stopped by SIGSTOP, with all its threads, it needed 18 ms of
its next turn to come back to itself: 0.5 of bare in place of 0.6.)
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Final

from benchmarks.child import Child, child
from benchmarks.contenders import TURN
from benchmarks.job import Job, Run

TURNS: Final = 4
"""Of 75,000 or 150,000 messages: 75 to 450 ms each. A turn begins with cold caches, and with
nothing on its way: of twelve turns in place of three, each of 20,000 messages, Redis' share was a
tenth less (0.31 and 0.36, twice each)."""


def in_turns(jobs: Mapping[str, Job], chance: random.Random) -> dict[str, Run]:
    """One round. Raises RuntimeError where one of them fails."""
    with ExitStack() as stack:
        left: dict[str, Child] = {}
        for name, job in jobs.items():
            given = asdict(replace(job, turn=-(-job.messages // TURNS)))
            left[name] = stack.enter_context(child("benchmarks.contenders", given))
        for each in left.values():
            if (said := each.line()) != TURN:
                raise RuntimeError(f"a contender that should have waited said {said}")
        runs: dict[str, Run] = {}
        while left:
            for name in chance.sample(list(left), len(left)):
                left[name].say(TURN)
                if (said := left[name].line()) != TURN:
                    runs[name] = Run(**json.loads(said))
                    del left[name]
        return runs
