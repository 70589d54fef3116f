"""A semaphore with a timeout, which limits the connections of long work, so that other work always finds one."""

import asyncio
from collections import deque
from types import TracebackType

from services.environments_store.database.failures import StatementFailure

__all__ = ["TimedSemaphore"]


class TimedSemaphore:
    """At most `count` callers are in `async with semaphore` at once. One that waits for longer than `timeout_s` gets a
    StatementFailure, which says what may hold the others (`holders`).

    The first to wait is the first to enter. A future and a timer for each cost less than a cancel scope.
    """

    def __init__(self, count: int, timeout_s: float, holders: str = "") -> None:
        self._free = max(1, count)
        self._timeout_s = timeout_s
        self._holders = holders
        self._waiting: deque[asyncio.Future[bool]] = deque()

    async def __aenter__(self) -> None:
        """Enter the block. Raises StatementFailure when no slot becomes free in time."""
        if not (self.try_acquire() or await self.acquire()):
            raise StatementFailure(f"no connection became free in time: {self._holders}", sent=False, timed_out=True)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def try_acquire(self) -> bool:
        if not self._free:
            return False
        self._free -= 1
        return True

    async def acquire(self) -> bool:
        """Whether a slot became free in time."""
        if self.try_acquire():
            return True
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[bool] = loop.create_future()
        self._waiting.append(turn)
        timer = loop.call_later(self._timeout_s, self._give_up, turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if not turn.cancelled() and turn.result():  # the slot came at the same moment
                self.release()
            raise
        finally:
            timer.cancel()
            while self._waiting and self._waiting[0].done():
                self._waiting.popleft()

    def release(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(True)
                return
        self._free += 1

    @staticmethod
    def _give_up(turn: asyncio.Future[bool]) -> None:
        if not turn.done():
            turn.set_result(False)
