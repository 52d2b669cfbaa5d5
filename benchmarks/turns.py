"""A round in turns: all its contenders are ready, and a few thousand messages each go to and fro.

A virtual machine is now fast and now slow. Here a sum over random places in memory took 0.5 to 1.7
ms within 40 s, and its mean over half a second strayed by 37% from its mean over all; half a second
beside the next one differed by 17%. So contenders that run one after another, seconds apart, are
told apart from the machine's moods by nothing, and those that take turns of some 50 ms are.

Whose turn it is not is stopped with all its threads, so that nobody works in another's time.
"""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Final

from benchmarks.child import Child, child
from benchmarks.contenders import TURN
from benchmarks.job import Job, Run

TURNS: Final = 12
"""Of 20,000 or 50,000 messages: 20 to 150 ms each."""


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
            each.process.send_signal(signal.SIGSTOP)
        runs: dict[str, Run] = {}
        while left:
            for name in chance.sample(list(left), len(left)):
                if (said := _turn(left[name])) != TURN:
                    runs[name] = Run(**json.loads(said))
                    del left[name]
        return runs


def _turn(contender: Child) -> str:
    """What it says behind its turn."""
    contender.process.send_signal(signal.SIGCONT)
    contender.say(TURN)
    said = contender.line()
    contender.process.send_signal(signal.SIGSTOP)
    return said
