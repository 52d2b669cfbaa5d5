"""What the tests of the Redis store share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from redis import Redis


def order(client: Redis, *words: str) -> Any:
    """One command, as an operator types it."""
    execute: Callable[..., Any] = client.execute_command
    return execute(*words)
