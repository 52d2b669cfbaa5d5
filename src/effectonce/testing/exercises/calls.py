"""Which calls a handler makes itself: each is a step, before it and after it.

A profile function (`sys.setprofile`) hears of every call while the handler runs, and may raise in
its place. The handler's own code is every function that is handed the event or the `tx`, and what
is written inside of one. What such code calls is a step; what happens inside that call is not: it
is the other side's.

| called                                             | may be                              |
| -------------------------------------------------- | ----------------------------------- |
| builtins, the event's methods, the modules of PURE | nothing: nobody else sees them      |
| `tx`, and methods of lists, dicts and sets         | killed, frozen                      |
| the rest                                           | killed, frozen, failed, unanswered  |
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Sequence
from types import FrameType, ModuleType
from typing import Final

from effectonce.testing.exercises.steps import CRASHES, ERRORS, FREEZES, Ending

PURE: Final = frozenset(
    [
        *("abc", "base64", "binascii", "builtins", "calendar", "codecs", "collections"),
        *("contextlib", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions"),
        *("functools", "hashlib", "heapq", "importlib", "inspect", "itertools", "json", "locale"),
        *("logging", "math", "operator", "random", "re", "reprlib", "string", "struct", "sys"),
        *("textwrap", "thread", "threading", "time", "traceback", "types", "typing", "unicodedata"),
        *("uuid", "warnings", "weakref", "zlib", "zoneinfo"),
    ]
)
"""Modules that only compute or tell, with the private ones beneath them."""

OURS: Final = "effectonce."
OUR_TX: Final = "effectonce.stores."
CONTAINERS: Final = (list, dict, set, deque, bytearray)
VALUES: Final = (str, bytes, int, float, complex, tuple, frozenset, type, type(None))

Before = Callable[[str, Sequence[Ending]], Ending | None]
After = Callable[[Ending | None], None]
HARMLESS: Final[Sequence[Ending]] = ()
WATCHED: Final = (*CRASHES, *FREEZES)
ALL: Final = (*WATCHED, *ERRORS)


class Calls:
    """While entered, tells `before` and `after` of each call that the handler makes."""

    def __init__(self, given: Sequence[object], before: Before, after: After) -> None:
        self._given = given
        self._before, self._after = before, after
        self._own: set[FrameType] = set()
        self._open: dict[object, Ending | None] = {}
        self._former: object = None

    def __enter__(self) -> None:
        self._former = sys.getprofile()
        sys.setprofile(self._hear)

    def __exit__(self, *error: object) -> None:
        sys.setprofile(self._former)  # type: ignore[arg-type]
        self._own.clear()
        self._open.clear()

    def _hear(self, frame: FrameType, event: str, arg: object) -> None:
        if event == "call":
            self._called(frame)
        elif event == "return":
            self._own.discard(frame)
            self._returned(frame)
        elif frame in self._own:
            if event == "c_call":
                self._begin((frame, arg), *_builtin(arg))
            else:
                self._returned((frame, arg))

    def _called(self, frame: FrameType) -> None:
        if self._is_own(frame):
            self._own.add(frame)
        elif frame.f_back in self._own:
            self._begin(frame, *_function(frame))

    def _is_own(self, frame: FrameType) -> bool:
        if str(frame.f_globals.get("__name__")).startswith(OURS):
            return False
        caller = frame.f_back
        if caller is not None and caller in self._own:
            if frame.f_code in caller.f_code.co_consts:
                return True
        elif self._own:
            return False
        passed = list(frame.f_locals.values())
        for value in frame.f_locals.values():
            if isinstance(value, tuple):  # a decorator's *args
                passed += value
        return any(value is each for value in passed for each in self._given)

    def _begin(self, call: object, name: str, endings: Sequence[Ending]) -> None:
        if endings:
            self._open[call] = None  # should it freeze here, it is not begun twice
            self._open[call] = self._before(name, endings)

    def _returned(self, call: object) -> None:
        if call in self._open:
            self._after(self._open.pop(call))


def _function(frame: FrameType) -> tuple[str, Sequence[Ending]]:
    code, module = frame.f_code, str(frame.f_globals.get("__name__"))
    name = code.co_qualname.rpartition("<locals>.")[2].removesuffix(".__init__")
    if module.startswith(OUR_TX):
        return f"tx.{code.co_name}", WATCHED
    if module.startswith(OURS) or _is_pure(module):
        return name, HARMLESS
    return name, ALL


def _builtin(function: object) -> tuple[str, Sequence[Ending]]:
    owner = getattr(function, "__self__", None)
    name = getattr(function, "__qualname__", repr(function))
    if isinstance(owner, ModuleType):
        module = owner.__name__
        return f"{module}.{name}", HARMLESS if _is_pure(module) else ALL
    if isinstance(owner, CONTAINERS):
        return name, WATCHED
    if isinstance(owner, VALUES) or _is_pure(type(owner).__module__):
        return name, HARMLESS
    return name, ALL


def _is_pure(module: str) -> bool:
    return module.partition(".")[0].lstrip("_") in PURE
