"""Cancellations that nobody asked for. Users' code that waits for a task which somebody has cancelled ends by
CancelledError, as if it was cancelled itself. Passed on, that would end without a word what the code runs in: a task
group with all else in it, the stop of a node, the task of a caller."""

import asyncio
from types import TracebackType


class _AskedOnly:
    """Lets a cancellation out when somebody cancels the current task, and makes a RuntimeError of any other. Holds
    nothing, so one is enough."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, asyncio.CancelledError):
            raise_unasked(error)


ASKED_ONLY = _AskedOnly()


def raise_unasked(error: asyncio.CancelledError) -> None:
    """Raise RuntimeError unless the current task is being cancelled."""
    task = asyncio.current_task()
    if task is None or not task.cancelling():
        raise RuntimeError("A task that was waited for has been cancelled.") from error
