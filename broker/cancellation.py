"""Users' code that waits for a task which something else cancelled ends by CancelledError, as if it was cancelled
itself. Passed on, that would silently end what the code runs in: a task group, the stop of a node, a caller's task."""

import asyncio
from collections.abc import Callable
from typing import Any


async def invoke_user(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a user's function, async or not. Raises RuntimeError for a cancellation that nothing asked for."""
    try:
        return await settle(function(*arguments))
    except asyncio.CancelledError as error:
        raise failure_of(error)  # noqa: B904 - it may be the error itself


async def settle(value: Any) -> Any:
    """The value, awaited if it must be."""
    return await value if hasattr(value, "__await__") else value


def failure_of(error: asyncio.CancelledError) -> BaseException:
    """The cancellation when the current task is being cancelled, else what it means for the code that waited."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        return error
    return RuntimeError("A task that was waited for has been cancelled.")
