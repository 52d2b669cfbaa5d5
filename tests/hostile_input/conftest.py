"""The fixtures of tests/bad_input: one topic on the mock broker, and no ID in any log line."""

from __future__ import annotations

from tests.bad_input.conftest import flow, told_nothing, watch

__all__ = ["flow", "told_nothing", "watch"]
