"""Work that is under way: whose it is, who waits for it, and who may end it (moleculer protocol §12.8)."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine
from contextvars import Context, ContextVar
from typing import Any

import anyio

from broker.conversation.effects import RunAction

logger = logging.getLogger("broker")

Owners = frozenset[object]
"""The nodes and services whose end a task would wait for in vain, as it is a part of their work."""

_OWNERS: ContextVar[Owners] = ContextVar("owners", default=frozenset())


def owners() -> Owners:
    """Those of the current task."""
    return _OWNERS.get()


def set_owners(new: Owners) -> None:
    """Make the current task, and those that it starts, work of these alone."""
    _OWNERS.set(new)


def belong_to(owner: object) -> Owners:
    """Make it work of one more node or service. Returns its owners before, for `set_owners`."""
    before = _OWNERS.get()
    if owner not in before:
        _OWNERS.set(before | {owner})
    return before


class Tracker:
    """Counts what is under way: whoever adds one calls `end` later."""

    def __init__(self) -> None:
        self.count = 0
        self._idle: anyio.Event | None = None

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
    """The tasks of requests, each of which holds its own, and of all other work. What one of these raises is logged,
    and ends no other."""

    def __init__(self, requests: Collection[RunAction] = ()) -> None:
        self._requests = requests
        self._tasks: set[asyncio.Task[None]] = set()
        self.closed = False
        """Whether none is started any more."""

    @property
    def count(self) -> int:
        """How many are running."""
        return len(self._tasks) + len(self._requests)

    def start(self, work: Coroutine[Any, Any, None], context: Context) -> bool:
        """Run the work in a task. False when none is started any more."""
        if self.closed:
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
        while (running := self._running()) and (left := deadline - loop.time()) > 0:
            await asyncio.wait(running, timeout=left)
        self.closed = True
        for task in running:
            task.cancel()
        while still := self._running():
            await asyncio.wait(still)
        return not running

    def _running(self) -> list[asyncio.Task[None]]:
        tasks = [*self._tasks, *(job.task for job in self._requests if job.task is not None)]
        return [task for task in tasks if not task.done()]

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("Some work of the node failed; it goes on", exc_info=error)


class Interruptible:
    """Holds one piece of work. `end` from within that work ends it too, without waiting for itself."""

    def __init__(self) -> None:
        self._scope: anyio.CancelScope | None = None
        self._over: anyio.Event | None = None

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do the work. Returns as well when it was ended: look at what it was to change."""
        self._over = anyio.Event()
        try:
            with anyio.CancelScope() as self._scope:
                await work()
        finally:
            self._scope = None
            self._over.set()

    async def end(self) -> None:
        """Cancel the work if it is under way, and return when it is over."""
        if self._scope is not None:
            self._scope.cancel()
        if self._over is not None:
            await self._over.wait()
