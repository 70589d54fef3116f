"""Users' code that waits for a task which was cancelled fails by itself, and ends nothing else."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

from broker import Context, Middleware, RemoteError, Service, action, event
from tests.support.cluster import Cluster
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio


async def wait_for_what_is_cancelled() -> None:
    """Ends by CancelledError, though the task it runs in is not cancelled."""
    async with asyncio.TaskGroup() as tasks:
        work = tasks.create_task(asyncio.sleep(3600))
        await asyncio.sleep(0)
        work.cancel()
    await work


class Hasty(Service):
    """Waits for something cancelled in the method of that name."""

    name = "hasty"

    def __init__(self, where: str = "") -> None:
        self.where = where

    async def at(self, where: str) -> None:
        if self.where == where:
            await wait_for_what_is_cancelled()

    async def started(self) -> None:
        await self.at("started")
        self.start_soon(self.at, "background")

    async def stopped(self) -> None:
        await self.at("stopped")

    @action
    async def wait(self, ctx: Context) -> None:
        await wait_for_what_is_cancelled()

    @action
    async def chunks(self, ctx: Context) -> AsyncIterator[bytes]:
        yield b"one"
        await wait_for_what_is_cancelled()

    @action(hooks={"before": "wait_before"})
    async def hooked(self, ctx: Context) -> None: ...

    async def wait_before(self, ctx: Context) -> None:
        await wait_for_what_is_cancelled()

    @action
    async def size(self, ctx: Context) -> int:
        return len(await ctx.stream.read())

    @action
    async def hello(self, ctx: Context) -> str:
        return "hello"

    @event("hasty.*")
    async def on_event(self, ctx: Context) -> None:
        await wait_for_what_is_cancelled()


class Patient(Hasty):
    name = "patient"

    def __init__(self) -> None:
        super().__init__()
        self.received: list[str | None] = []

    @event("hasty.*")
    async def on_hasty(self, ctx: Context) -> None:
        for _ in range(10):
            await asyncio.sleep(0)
        self.received.append(ctx.event)


async def test_a_service_whose_start_waits_for_something_cancelled_fails_the_start(cluster: Cluster) -> None:
    node = cluster.make("one", [Hasty("started")])
    with pytest.raises(RuntimeError, match="has been cancelled"):
        await node.start()


async def test_background_work_that_waits_for_something_cancelled_ends_nothing_else(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    _, caller = await cluster.start(("one", [Hasty("background")]), ("two", []))
    await eventually(lambda: "Background work of service 'hasty' failed" in caplog.text, "a line about it")
    assert await caller.call("hasty.hello") == "hello"


async def test_a_node_stops_when_a_service_waits_for_something_cancelled_in_its_stop(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    node = await cluster.start_one("one", [Hasty("stopped")])
    await node.stop()
    await node.wait_stopped()
    assert "Service 'hasty' did not stop cleanly" in caplog.text


@pytest.mark.parametrize("name", ["wait", "hooked"])
async def test_a_caller_learns_that_the_handler_failed(cluster: Cluster, name: str) -> None:
    one, two = await cluster.start(("one", [Hasty()]), ("two", []))
    with pytest.raises(RuntimeError, match="has been cancelled"):
        await one.call(f"hasty.{name}")
    with pytest.raises(RemoteError, match="has been cancelled") as caught:
        await two.call(f"hasty.{name}")
    assert (caught.value.code, caught.value.retryable) == (500, False)


async def test_of_several_calls_none_is_without_its_result(cluster: Cluster) -> None:
    node = await cluster.start_one("one", [Hasty()])
    calls = [{"action": "hasty.wait"}, {"action": "hasty.hello"}]
    with pytest.raises(RuntimeError, match="has been cancelled"):
        await node.mcall(calls)
    failed, done = await node.mcall(calls, settled=True)
    assert (failed["status"], done) == ("rejected", {"status": "fulfilled", "value": "hello"})


async def test_the_reader_of_a_stream_learns_that_its_source_failed(cluster: Cluster) -> None:
    one, two = await cluster.start(("one", [Hasty()]), ("two", []))
    for caller, error in ((one, RuntimeError), (two, RemoteError)):
        with pytest.raises(error, match="has been cancelled"):
            await (await caller.call("hasty.chunks")).read()


async def test_a_call_fails_when_the_stream_that_it_sends_does(cluster: Cluster) -> None:
    async def source() -> AsyncIterator[bytes]:
        await wait_for_what_is_cancelled()
        yield b"never"

    _, caller = await cluster.start(("one", [Hasty()]), ("two", []))
    with pytest.raises(RuntimeError, match="has been cancelled"):
        await caller.call("hasty.size", stream=source())


async def test_the_failure_of_an_event_handler_is_logged(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    node = await cluster.start_one("one", [Hasty()])
    await node.emit("hasty.now")
    await eventually(lambda: "The handler of 'hasty.now' in service 'hasty' failed" in caplog.text, "a line about it")


async def test_other_handlers_of_the_same_event_run_to_their_end(cluster: Cluster) -> None:
    patient = Patient()
    node = await cluster.start_one("one", [patient])
    await node.emit("hasty.now")
    await eventually(lambda: patient.received == ["hasty.now"], "the other handler")


async def test_a_middleware_that_waits_for_something_cancelled_keeps_no_node_from_stopping(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    class Hook(Middleware):
        async def stopping(self, broker: object) -> None:
            await wait_for_what_is_cancelled()

    node = await cluster.start_one("one", [], middlewares=[Hook()])
    await node.stop()
    await node.wait_stopped()
    assert "The hook 'stopping' of a middleware failed" in caplog.text


async def test_a_cancellation_that_was_asked_for_stays_one(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    class Slow(Service):
        name = "slow"
        entered = asyncio.Event()

        @action
        async def sleep(self, ctx: Context) -> None:
            self.entered.set()
            await asyncio.sleep(3600)

    slow = Slow()
    node = await cluster.start_one("one", [slow])
    call = asyncio.get_running_loop().create_task(node.call("slow.sleep"))
    await slow.entered.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not caplog.text
