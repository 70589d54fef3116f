"""Waiting for what a test needs: the moment it holds, within a deadline that nothing asserts."""

from collections.abc import Callable
from typing import TypeVar

import anyio

__all__ = ["DEADLINE_S", "eventually"]

T = TypeVar("T")
_POLL_S = 0.005
# For things that take moments: generous, since a test machine may be busy. Nothing asserts it.
DEADLINE_S = 30.0


async def eventually(condition: Callable[[], T], what: str = "", *, deadline_s: float = DEADLINE_S) -> T:
    """The first true result of a condition that no event tells of. Raises AssertionError with what was waited for."""
    with anyio.move_on_after(deadline_s):
        while not (result := condition()):  # noqa: ASYNC110 - no event tells of it
            await anyio.sleep(_POLL_S)
        return result
    raise AssertionError(f"Waited {deadline_s:g} s for {what or condition}.")
