"""Many short pieces of work in few tasks: a task for each costs more than most of them do."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from time import monotonic
from typing import Any, Protocol, TypeVar

from broker.defaults import SLICE_S


class Place(Protocol):
    def enter(self) -> None:
        """Set the context variables that they begin with, whatever those of another place were."""


P = TypeVar("P", bound=Place)
A = TypeVar("A")


class Workers:
    """Runs pieces of work in the order in which they were submitted, one after the other in one task, for as long as
    none of them waits for anything. One that waits keeps its task to itself, and another task goes on with the others.
    So each has a task and context variables as if they were its own, from its beginning to its end.

    `start` runs a coroutine in a task, or says that it no longer does. At most `limit` pieces should be under way:
    their source waits for `room` while they are `full`.
    """

    def __init__(self, start: Callable[[Coroutine[Any, Any, None]], bool], limit: int) -> None:
        self._start = start
        self._limit = limit
        self._due: deque[tuple[Callable[..., Coroutine[Any, Any, None]], Place, Any]] = deque()
        self._active: object = None
        """Identifies the worker that takes what is due; None when there is none."""
        self._waiting = 0
        self._context = copy_context()
        """That work begins in, whoever submits it."""
        self._room = asyncio.Event()

    def submit(self, work: Callable[[P, A], Coroutine[Any, Any, None]], place: P, argument: A) -> None:
        """Run this soon. It must raise nothing but cancellations."""
        self._due.append((work, place, argument))
        if self._active is None:
            self._begin()

    @property
    def full(self) -> bool:
        return len(self._due) + self._waiting >= self._limit

    async def room(self) -> None:
        while self.full:
            self._room.clear()
            await self._room.wait()

    def _begin(self) -> None:
        self._active = worker = object()
        if not self._context.copy().run(self._start, self._run(worker)):
            self._active = None
            self._due.clear()

    async def _run(self, worker: object) -> None:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        entered, clean = None, self._context
        loop.call_soon(self._look, worker)
        until = monotonic() + SLICE_S
        try:
            while self._due and self._active is worker:
                work, place, argument = self._due.popleft()
                if place is not entered:
                    place.enter()
                    entered, clean = place, copy_context()
                await work(place, argument)
                try:
                    clean_yet = copy_context() == clean
                except Exception:  # values that cannot be compared were changed
                    break
                if not clean_yet or monotonic() > until or task.cancelling():
                    break
        finally:
            if self._active is worker:
                self._active = None
                if self._due:  # after other work of the event loop
                    self._begin()
            else:
                self._waiting -= 1
            self._room.set()

    def _look(self, worker: object) -> None:
        """A worker was active before this turn of the event loop: when it still is, its work waits."""
        if self._active is worker:
            self._active = None
            self._waiting += 1
            if self._due:
                self._begin()
