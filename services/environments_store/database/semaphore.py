"""A share of the connections for work that may hold one for long, so that other work always finds one."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio

from services.environments_store.database.failures import StatementFailure

__all__ = ["TimedSemaphore"]


class TimedSemaphore:
    """At most `count` holders at once. A caller that has waited for `timeout_s` gets a StatementFailure that says what
    `holders` are."""

    def __init__(self, count: int, timeout_s: float, holders: str) -> None:
        self._free = anyio.Semaphore(max(1, count), fast_acquire=True)
        self._timeout_s = timeout_s
        self._holders = holders

    @asynccontextmanager
    async def hold(self) -> AsyncGenerator[None]:
        """Raises StatementFailure when all are taken and none becomes free in time."""
        await self._acquire()
        try:
            yield
        finally:
            self._free.release()

    async def _acquire(self) -> None:
        try:
            self._free.acquire_nowait()  # the usual case, without a timer
        except anyio.WouldBlock:
            try:
                with anyio.fail_after(self._timeout_s):
                    await self._free.acquire()
            except TimeoutError:
                raise StatementFailure(
                    f"no connection became free in time: {self._holders}", sent=False, timed_out=True
                ) from None
