"""A share of the connections for those who may keep one for long, so that the others always find one."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio

from services.environments_store.database.failures import StatementFailure

__all__ = ["Turns"]


class Turns:
    """`count` at once; who has waited for `timeout_s` is told so."""

    def __init__(self, count: int, timeout_s: float) -> None:
        self._free = anyio.Semaphore(max(1, count))
        self._timeout_s = timeout_s

    @asynccontextmanager
    async def one(self) -> AsyncGenerator[None]:
        """Raises StatementFailure when all are taken and none becomes free in time."""
        try:
            with anyio.fail_after(self._timeout_s):
                await self._free.acquire()
        except TimeoutError:
            raise StatementFailure(
                "no connection became free in time: exports that nobody reads on may hold them",
                sent=False,
                timed_out=True,
            ) from None
        try:
            yield
        finally:
            self._free.release()
