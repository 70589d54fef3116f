"""Many short pieces of work run in few tasks, each as if it had one of its own."""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

import anyio
import pytest

from broker.node.workers import Workers
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

Coroutines = Coroutine[Any, Any, None]

PLACE: ContextVar[str] = ContextVar("place", default="nowhere")
LEFT: ContextVar[object] = ContextVar("left", default=None)


class Room:
    def __init__(self, name: str = "room") -> None:
        self.name = name

    def enter(self) -> None:
        PLACE.set(self.name)


class Bench:
    """Workers whose tasks are counted, in a group of the test's."""

    def __init__(self, group: asyncio.TaskGroup, limit: int = 1000) -> None:
        self.tasks: list[asyncio.Task[None]] = []
        self.workers = Workers(self.start, limit)
        self.done: list[Any] = []
        self._group = group

    def start(self, work: Coroutines) -> bool:
        self.tasks.append(self._group.create_task(work))
        return True

    def submit(self, *works: Callable[[], Coroutines], room: Room | None = None) -> None:
        place = room or Room()

        async def run(_place: Room, work: Callable[[], Coroutines]) -> None:
            await work()

        for work in works:
            self.workers.submit(run, place, work)

    def noting(self, value: Any) -> Callable[[], Coroutines]:
        async def note() -> None:
            self.done.append(value)

        return note


async def test_work_that_waits_for_nothing_shares_a_task_in_order() -> None:
    async with asyncio.TaskGroup() as group:
        bench = Bench(group)
        bench.submit(*(bench.noting(number) for number in range(100)))
    assert bench.done == list(range(100))
    assert len(bench.tasks) < 10


async def test_work_that_waits_holds_nothing_up_and_keeps_its_task() -> None:
    released = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        bench = Bench(group)

        async def wait() -> None:
            before = asyncio.current_task()
            with anyio.move_on_after(60):  # which has to end in the task in which it began
                async with asyncio.timeout(60):
                    await released.wait()
            assert asyncio.current_task() is before
            bench.done.append("released")

        bench.submit(bench.noting(1), wait, wait, bench.noting(2), wait, bench.noting(3))
        await eventually(lambda: bench.done == [1, 2, 3])
        released.set()
    assert bench.done == [1, 2, 3, "released", "released", "released"]


async def test_each_piece_of_work_has_context_variables_of_its_own() -> None:
    seen: list[tuple[str, object]] = []

    async def change() -> None:
        seen.append((PLACE.get(), LEFT.get()))
        LEFT.set(Incomparable())

    async def look() -> None:
        seen.append((PLACE.get(), LEFT.get()))

    async with asyncio.TaskGroup() as group:
        bench = Bench(group)
        bench.submit(change, look, change, room=Room("one"))
        bench.submit(look, change, look, room=Room("two"))
    assert seen == [("one", None)] * 3 + [("two", None)] * 3


class Incomparable:
    def __eq__(self, _other: object) -> bool:
        raise ValueError("ambiguous")

    __hash__ = object.__hash__


async def test_a_cancellation_ends_the_piece_of_work_that_is_meant() -> None:
    async def cancel_itself() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    async def cancelled() -> None:
        raise asyncio.CancelledError

    async with asyncio.TaskGroup() as group:
        bench = Bench(group)

        async def wait_a_moment() -> None:
            await asyncio.sleep(0)
            bench.done.append("undisturbed")

        bench.submit(cancel_itself, wait_a_moment, cancelled, wait_a_moment)
    assert bench.done == ["undisturbed"] * 2


async def test_other_work_of_the_event_loop_comes_in_between() -> None:
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while len(bench.done) < 20_000:
            turns += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        bench = Bench(group)
        bench.submit(*(bench.noting(number) for number in range(20_000)))
        await take_turns()
    assert turns > 2


async def test_they_are_full_when_as_much_as_allowed_is_due_or_waits() -> None:
    released = asyncio.Event()

    async def wait() -> None:
        await released.wait()

    async with asyncio.TaskGroup() as group:
        bench = Bench(group, limit=3)
        for _ in range(3):
            assert not bench.workers.full
            bench.submit(wait)
        assert bench.workers.full
        await eventually(lambda: len(bench.tasks) == 3)
        assert bench.workers.full
        room = group.create_task(bench.workers.room())
        await asyncio.sleep(0)
        assert not room.done()
        released.set()
        await room
    assert not bench.workers.full


async def test_what_is_due_is_dropped_when_no_task_can_be_started_any_more() -> None:
    def refuse(work: Coroutines) -> bool:
        work.close()
        return False

    workers, bench_less = Workers(refuse, 10), Room()

    async def never(_room: Room, _argument: None) -> None:
        raise AssertionError

    workers.submit(never, bench_less, None)
    assert not workers.full
    await workers.room()
