"""One case: members one after another over one log and one store, until the log is at its end.

    killed    every port raises `Killed` from then on; what the process held is gone with it
    frozen    the next member runs to the end of the log *inside* the frozen call, which then goes
              on where it stood: a zombie, as the store's fence and the user's handler meet it

Each member is the real `OnceConsumer`. Only the first one meets a fault.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Protocol, runtime_checkable

from effectonce.consumer import END, OnceConsumer
from effectonce.errors import ConfigError, EffectOnceError
from effectonce.event import Event
from effectonce.handlers import Handler, check_handler
from effectonce.model import Partition
from effectonce.once import Once
from effectonce.policy import Retry, StartAt
from effectonce.testing.exercises.calls import ALL, Calls
from effectonce.testing.exercises.ports import Cluster, MemberStore, NoKeeper, SampleClient
from effectonce.testing.exercises.samples import BORN_MS, Sample
from effectonce.testing.exercises.steps import Ending, Killed, Refused, Script, Step, TimedOut

GROUP: Final = "exercise"
CONFIG: Final = {"bootstrap.servers": "simulated", "group.id": GROUP}
RESTARTS: Final = 5
"""Members after the first. One is enough, unless the handler itself keeps it from the end."""
MOST_STEPS: Final = 5_000
"""A member that takes so many has met something that never ends."""
LOCKED_SECONDS: Final = 2.0
"""A successor would wait for a frozen owner's LOCK for ever; after this much the owner thaws."""


@runtime_checkable
class Target(Protocol):
    """The other side of a handler's effects: a fake bank, a mailbox, a table."""

    def reset(self) -> None:
        """Forget everything: a new case begins."""
        ...

    def effects(self) -> Iterable[Hashable] | Mapping[Hashable, int]:
        """What took effect, as often as it did: a list of charges, or a count by name."""
        ...


@dataclass(frozen=True, slots=True)
class PerProcess:
    """A handler that each process makes for itself.

    For one that remembers (a cache, a set of IDs seen), holds a connection or a lock: what `make`
    returns dies with its process, and no two members share it.
    """

    make: Callable[[], Handler]


@dataclass(frozen=True, slots=True)
class Setup:
    """What is exercised."""

    handler: Handler | PerProcess
    samples: Sequence[Sample]
    once: Once
    target: Target | None
    topic: str

    def make_handler(self) -> Handler:
        if not isinstance(self.handler, PerProcess):
            return self.handler
        made = self.handler.make()
        check_handler(made, "event", in_store=self.once.in_store)
        return made

    def once_over(self, store: MemberStore) -> Once:
        """The user's policy over another store, without waits."""
        ours = copy(self.once)
        ours.store = store
        ours.start_at = StartAt.EARLIEST
        ours.retry = Retry(self.once.retry.attempts, timedelta(0), timedelta(0), 0.0)
        return ours


@dataclass(slots=True)
class Run:
    """One call of the handler."""

    sample: str
    member: int
    maybe_repeated: bool
    returned: bool = False


class World:
    """Everything of one case."""

    def __init__(self, setup: Setup, samples: Sequence[Sample], script: Script) -> None:
        self.setup = setup
        self.cluster = Cluster(setup.topic, samples)
        self.script = script
        self.now = 0.0
        self.runs: list[Run] = []
        self.errors: list[EffectOnceError] = []
        self.born = 0
        self.began_with: Counter[Hashable] = Counter()
        """What the target has right after its reset."""

    def run(self) -> bool:
        """False if no member came to the end of the log."""
        if self.setup.target is not None:
            self.setup.target.reset()
            self.began_with = self.effects()
        return any(Member(self, scripted=not number).run() for number in range(RESTARTS + 1))

    def effects(self) -> Counter[Hashable]:
        """What the target has."""
        return Counter() if self.setup.target is None else counted(self.setup.target.effects())

    def rows(self) -> dict[bytes, bytes]:
        """What was committed through the `tx`."""
        at = Partition(self.setup.once.scope or GROUP, GROUP, self.setup.topic, 0)
        return dict(self.cluster.store.transaction(at).begin().scan())


def counted(effects: object) -> Counter[Hashable]:
    """Raises ConfigError for what is neither a list of values nor counts by name."""
    try:
        if isinstance(effects, str | bytes):
            raise TypeError("a text is one value")
        counts: Counter[Hashable] = Counter(effects)  # type: ignore[call-overload]
    except TypeError as error:
        raise ConfigError(
            [f"target: effects() gives an iterable of hashable values, or a mapping: {error}"]
        ) from error
    for effect in counts:
        count: object = counts[effect]
        if not isinstance(count, int) or count < 0:
            raise ConfigError(
                [
                    f"target: effects() says {count!r} of {effect!r}: a mapping says how often "
                    "each took effect. Of amounts give a list, a value for each change"
                ]
            )
    return counts


class Member:
    """One process: its ports, its clock, and the steps that it takes."""

    def __init__(self, world: World, *, scripted: bool) -> None:
        world.born += 1
        self._world = world
        self._number = world.born
        self._scripted = scripted
        self._steps = 0
        self._born = world.now
        self._dead = self._gave_up = False
        self._client = SampleClient(self, world.cluster)
        self._store = MemberStore(self, world.cluster, world.setup.once.store.traits)
        self._handler = world.setup.make_handler()
        self._consumer: OnceConsumer | None = None

    def run(self) -> bool:
        """To the end of the log; false if it did not get there."""
        world = self._world
        try:
            self._consumer = OnceConsumer(
                CONFIG,
                [world.cluster.topic],
                world.setup.once_over(self._store),
                client=self._client,
                clock=self,
                keeper=NoKeeper(),
            )
            try:
                self._consumer.run(self._handle, until=END)
            finally:
                self._consumer.close()
        except Killed:
            return False
        except ConfigError:
            raise
        except EffectOnceError as error:
            world.errors.append(error)
            return False
        finally:
            self._store.unlock()
        return not self._gave_up

    def _handle(self, event: Event, *tx: object) -> object:
        world = self._world
        name = world.cluster.samples[event.offset].id
        run = Run(name, self._number, event.maybe_repeated)
        ending = self.enter("handler", ALL, (name,))
        if ending is Ending.FAILED:
            raise Refused("simulated: before the handler did anything")
        world.runs.append(run)
        if not self._scripted or world.script.fired is not None:
            outcome = self._handler(event, *tx)
        else:
            with Calls(
                (event, *tx),
                lambda call, endings: self._enter_call(name, call, endings),
                self._leave_call,
            ):
                outcome = self._handler(event, *tx)
        run.returned = True
        self.leave(ending)
        if ending is Ending.UNANSWERED:
            raise TimedOut("simulated: after the handler did everything")
        return outcome

    def _enter_call(self, name: str, call: str, endings: Sequence[Ending]) -> Ending | None:
        ending = self._enter(Step("call", (name,), call), endings)
        if ending is Ending.FAILED:
            raise Refused(f"simulated: {call} did nothing")
        return ending

    def _leave_call(self, ending: Ending | None) -> None:
        self.leave(ending)
        if ending is Ending.UNANSWERED:
            raise TimedOut("simulated: it is done, and its answer is lost")

    # -- steps ---------------------------------------------------------------------------------

    def enter(
        self, what: str, endings: Sequence[Ending], about: tuple[str, ...] = ()
    ) -> Ending | None:
        """Before a call across an edge."""
        return self._enter(Step(what, about), endings)

    def _enter(self, step: Step, endings: Sequence[Ending]) -> Ending | None:
        if self._dead:
            raise Killed
        self._steps += 1
        if self._steps > MOST_STEPS:
            self._give_up()
        if not self._scripted:
            return None
        ending = self._world.script.next(step, endings)
        if ending is Ending.KILLED_BEFORE:
            self._kill()
        elif ending is Ending.FROZEN_BEFORE:
            self._freeze()
        return ending

    def leave(self, ending: Ending | None) -> None:
        """After what the call does, before its answer."""
        if ending is Ending.KILLED_AFTER:
            self._kill()
        elif ending is Ending.FROZEN_AFTER:
            self._freeze()

    def take_over(self) -> None:
        """Another member brings the log to its end."""
        Member(self._world, scripted=False).run()

    def idle(self, seconds: float) -> None:
        """Time passes."""
        self._world.now += seconds
        waits = self._world.cluster.lock not in (None, self._store)
        if waits and self._world.now - self._born > LOCKED_SECONDS:
            self._give_up()

    def _kill(self) -> None:
        self._dead = True
        raise Killed

    def _freeze(self) -> None:
        self._client.expelled = True
        self.take_over()

    def _give_up(self) -> None:
        self._gave_up = True
        if self._consumer is not None:
            self._consumer.stop()

    # -- Clock ---------------------------------------------------------------------------------

    def wall_ms(self) -> int:
        return BORN_MS + int(self._world.now * 1000)

    def monotonic(self) -> float:
        return 100.0 + self._world.now
