"""Work that is under way: whose it is, who waits for it, and who may end it (moleculer protocol §12.8)."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine
from contextvars import Context, ContextVar
from enum import StrEnum
from typing import Any

import anyio

from broker.conversation.effects import RunAction

logger = logging.getLogger("broker")

Owners = frozenset[object]
"""The nodes and services whose end a task would wait for in vain, as it is a part of their work."""

_OWNERS: ContextVar[Owners] = ContextVar("owners", default=frozenset())


def owners() -> Owners:
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


class State(StrEnum):
    """Of a node, and of each of its services. A stop may be asked for in any of the first three."""

    NEW = "new"
    STARTING = "starting"
    STARTED = "started"
    STOPPING = "stopping"
    STOPPED = "stopped"


class Life:
    """The way from new to stopped: `ask_to_stop` asks, `stop` does it once, and `ended` waits for it. A start is ended
    by a stop, also by one that it asks for itself."""

    def __init__(self) -> None:
        self.state = State.NEW
        self.stopped = anyio.Event()
        self._failure: Exception | None = None
        self._starting: anyio.CancelScope | None = None
        self._start_over: anyio.Event | None = None

    async def start(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do the work of a start, which sets the state to STARTED. Returns as well when a stop ended it."""
        self.state, self._start_over = State.STARTING, anyio.Event()
        try:
            with anyio.CancelScope() as self._starting:
                await work()
        finally:
            self._starting = None
            self._start_over.set()

    def ask_to_stop(self) -> State:
        """The state until now."""
        before = self.state
        if before is not State.STOPPED:
            self.state = State.STOPPING
        return before

    async def stop(self, work: Callable[[], Awaitable[None]], timeout_s: float) -> None:
        """End the start, if it is under way, and do the work of a stop. A failure is for those who wait."""
        try:
            with anyio.move_on_after(timeout_s):
                if self._starting is not None:
                    self._starting.cancel()
                if self._start_over is not None:
                    await self._start_over.wait()
            await work()
        except Exception as error:
            self._failure = error
        finally:
            self.state = State.STOPPED
            self.stopped.set()

    async def ended(self, owner: object) -> None:
        """Return when it has stopped; at once in work of its owner, which would wait for its own end. Raises what the
        stop raised."""
        if owner not in owners():
            await self.stopped.wait()
            if self._failure is not None:
                raise self._failure
