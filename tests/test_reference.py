"""docs/reference.md says what the code does, or a reader is misled."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest

import effectonce as eo
from effectonce import hooks, testing
from effectonce.testing import plugin

PAGE = (Path(__file__).parents[1] / "docs/reference.md").read_text()


def section(title: str) -> str:
    """What stands under the heading that begins so."""
    _, _, rest = PAGE.partition(f"\n## {title}")
    assert rest, title
    return rest.partition("\n## ")[0]


def rows(text: str) -> dict[str, str]:
    """Of its tables the first column, without backticks, and the second."""
    cells = re.findall(r"^\| `(\w+)` \|([^|]*)\|", text, re.MULTILINE)
    return {name: second.strip().strip("`") for name, second in cells}


def parameters(function: Any) -> dict[str, Any]:
    found = inspect.signature(function).parameters.values()
    return {each.name: each.default for each in found if each.name != "self"}


def spelled(default: Any) -> str:
    """As one would write it."""
    if default is inspect.Parameter.empty:
        return ""
    if isinstance(default, timedelta):
        unit = "days" if default.days else "seconds" if default.seconds else "milliseconds"
        count = default / timedelta(**{unit: 1})
        return f"timedelta({unit}={count:g})"
    return f'"{default}"' if isinstance(default, str) else repr(default)


@pytest.mark.parametrize("name", sorted(eo.__all__))
def test_no_public_name_is_missing(name: str) -> None:
    assert re.search(rf"\b{name}\b", PAGE)


@pytest.mark.parametrize("name", [*hooks.__all__, *testing.__all__])
def test_no_name_of_hooks_or_testing_is_missing(name: str) -> None:
    assert re.search(rf"\b{name}\b", PAGE)


@pytest.mark.parametrize(
    ("title", "kind"),
    [("`eo.Once(", eo.Once), ("`eo.Retry(", eo.Retry), ("`eo.Limits(", eo.Limits)],
)
def test_every_argument_stands_there_with_its_default(title: str, kind: Any) -> None:
    expected = {name: spelled(default) for name, default in parameters(kind).items()}
    assert rows(section(title)) == expected


@pytest.mark.parametrize("name", ["run", "run_batches", "stop", "health", "close"])
def test_every_call_of_a_consumer_stands_there_with_its_arguments(name: str) -> None:
    line = re.search(rf"^\| `{name}\(.*$", section("`eo.OnceConsumer("), re.MULTILINE)
    assert line is not None
    for parameter in parameters(getattr(eo.OnceConsumer, name)):
        assert re.search(rf"\b{parameter}\b", line[0]), parameter


def test_every_part_of_an_event_and_of_a_batch_stands_there() -> None:
    told = section("`eo.Event`")
    for kind in (eo.Event, eo.Batch):
        for name in (each for each in vars(kind) if not each.startswith("_")):
            assert re.search(rf"\b{name}\b", told), name


@pytest.mark.parametrize("kind", get_args(hooks.HookEvent))
def test_every_field_of_an_event_for_hooks_stands_there(kind: Any) -> None:
    line = re.search(rf"^\| `{kind.__name__}` .*$", section("Watching"), re.MULTILINE)
    assert line is not None
    for each in fields(kind):
        assert f"`{each.name}`" in line[0], each.name


def test_a_name_that_is_elsewhere_is_there() -> None:
    told = re.findall(r"^\| `(effectonce[\w.]*)` \| (.*) \|$", section("Names"), re.MULTILINE)
    assert len(told) == 7
    for module, names in told:
        found = re.findall(r"`(\w+)(?:\(|`)", names)
        assert found
        assert all(hasattr(import_module(module), name) for name in found if name[0].isupper()), (
            names
        )


def test_every_fixture_stands_there() -> None:
    fixtures = re.findall(r"@pytest.fixture.*\ndef (\w+)", Path(plugin.__file__).read_text())
    assert fixtures
    assert all(f"`{name}`" in section("Tests") for name in fixtures)
