"""A semaphore with a timeout, which limits the connections of long work, so that other work always finds one."""

from types import TracebackType

import anyio

from services.environments_store.database.failures import StatementFailure

__all__ = ["TimedSemaphore"]


class TimedSemaphore:
    """At most `count` callers are in `async with semaphore` at once. One that waits for longer than `timeout_s` gets a
    StatementFailure, which says what may hold the others (`holders`)."""

    def __init__(self, count: int, timeout_s: float, holders: str) -> None:
        self._free = anyio.Semaphore(max(1, count), fast_acquire=True)
        self._timeout_s = timeout_s
        self._holders = holders

    async def __aenter__(self) -> None:
        """Enter the block. Raises StatementFailure when no slot becomes free in time."""
        try:
            self._free.acquire_nowait()  # usually possible, without a timer
        except anyio.WouldBlock:
            await self._wait()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._free.release()

    async def _wait(self) -> None:
        try:
            with anyio.fail_after(self._timeout_s):
                await self._free.acquire()
        except TimeoutError:
            raise StatementFailure(
                f"no connection became free in time: {self._holders}", sent=False, timed_out=True
            ) from None
