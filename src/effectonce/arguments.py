"""What both drivers' `run` and its like are told, and what is refused of it, all at once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from enum import Enum
from typing import Final, TypeAlias

from effectonce.core.order import Order
from effectonce.errors import ConfigError
from effectonce.event import Event

LaneOf: TypeAlias = Callable[[Event], Hashable | None]
"""The user's: what must run in order with what. None is a lane of its own."""


class Until(Enum):
    """When `run` returns by itself."""

    STOPPED = "stopped"
    END = "end"


END: Final = Until.END
"""`run(handler, until=END)`: return once every partition of the topics is past the end that it had
when the run began, whoever of the group consumes it."""


def check_all(*checks: Callable[[], None]) -> None:
    """Raises one ConfigError, with all that they found."""
    problems: list[str] = []
    for check in checks:
        try:
            check()
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)


def check_until(until: object) -> None:
    """Raises ConfigError."""
    if until not in list(Until):
        raise ConfigError([f"until={until!r}: effectonce.END, or left out"])


def check_size(size: int | None) -> None:
    """Raises ConfigError."""
    if size is not None and size not in range(1, 65_536):
        raise ConfigError([f"size={size!r}: from 1 to 65535"])


def lane_problems(lanes: object, order: object, lane: object, *, in_store: bool) -> Iterable[str]:
    """What is wrong with the arguments of `run`."""
    if isinstance(lanes, bool) or not isinstance(lanes, int) or lanes not in range(1, 4097):
        yield f"lanes={lanes!r}: how many handlers run at once, from 1 to 4096"
        return
    orders = [each.value for each in Order]
    if order not in orders:
        yield f"order={order!r}: one of {', '.join(map(repr, orders))}"
    if lane is not None and not callable(lane):
        yield f"lane={lane!r}: a function of the event, or left out"
    elif lane is not None and order != Order.KEY.value:
        yield f"lane: says itself what runs in order; leave order={order!r} out"
    if in_store and lanes > 1 and (order != Order.PARTITION.value or lane is not None):
        yield (
            f"lanes={lanes} with InStore(): one commit is one transaction of its partition. Say "
            'order="partition", or lanes=1, or Outside(on_doubt="repeat") for effects elsewhere'
        )


def check_lanes(lanes: object, order: object, lane: object, *, in_store: bool) -> None:
    """Raises ConfigError with all that is wrong."""
    if problems := list(lane_problems(lanes, order, lane, in_store=in_store)):
        raise ConfigError(problems)
