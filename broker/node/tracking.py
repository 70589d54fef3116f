"""What is under way, so that a stop can wait for it (moleculer protocol §12.8)."""

import asyncio
import logging
from collections.abc import Coroutine
from contextvars import Context
from typing import Any

import anyio

logger = logging.getLogger("broker")


class Tracker:
    """Counts. Whoever begins must end."""

    def __init__(self) -> None:
        self.count = 0
        self._idle: anyio.Event | None = None

    def begin(self) -> None:
        self.count += 1

    def end(self) -> None:
        self.count -= 1
        if not self.count and self._idle is not None:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Return when nothing is under way."""
        while self.count:
            self._idle = anyio.Event()
            await self._idle.wait()


class HandlerTasks:
    """The tasks of requests and events. What one raises is logged, and ends no other."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def start(self, work: Coroutine[Any, Any, None], context: Context) -> bool:
        """Run the work in a task. False when none is started any more."""
        if self._closed:
            work.close()
            return False
        task = asyncio.get_running_loop().create_task(work, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return True

    async def finish(self, timeout: float) -> bool:
        """Wait for all, cancel those that take longer, and start none after them. Whether none was cancelled."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while self._tasks and (left := deadline - loop.time()) > 0:
            await asyncio.wait(self._tasks, timeout=left)
        self._closed, late = True, list(self._tasks)
        for task in late:
            task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)
        return not late

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("Some work of the node failed; it goes on", exc_info=error)
