"""Waiting for a condition of a test, within a deadline that no test asserts."""

from collections.abc import Callable
from typing import TypeVar

import anyio

__all__ = ["DEADLINE_S", "eventually"]

T = TypeVar("T")
_POLL_S = 0.005
# For operations that take moments: generous, since a test machine may be busy. No test asserts it.
DEADLINE_S = 30.0


async def eventually(condition: Callable[[], T], what: str = "", *, deadline_s: float = DEADLINE_S) -> T:
    """Wait for the first true result of a condition that has no event. Raises AssertionError with `what`."""
    with anyio.move_on_after(deadline_s):
        while not (result := condition()):  # noqa: ASYNC110 - there is no event for it
            await anyio.sleep(_POLL_S)
        return result
    raise AssertionError(f"Waited {deadline_s:g} s for {what or condition}.")
