"""A node joins, changes, leaves without loss, or is killed (protocol §4)."""

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import pytest

from broker import (
    BrokerDisconnectedError,
    BrokerOptionsError,
    Context,
    Middleware,
    MoleculerError,
    MoleculerServerError,
    RequestRejectedError,
    Service,
    ServiceNotAvailableError,
    ServiceNotFoundError,
    ServiceSchemaError,
    action,
    event,
)
from broker.context import Next
from tests.support.cluster import Cluster
from tests.support.example_services import Echo, Gate, Listener, Math
from tests.support.waiting import DEADLINE_S, eventually

pytestmark = pytest.mark.anyio


class Recorder(Service):
    """Records its lifecycle."""

    name = "recorder"

    def __init__(self, name: str = "recorder", fails: bool = False) -> None:
        self.name = name  # type: ignore[misc]  # one class serves as several services
        self.notes: list[str] = []
        self.fails = fails
        self.may_start = anyio.Event()
        self.may_start.set()

    @action
    async def ping(self, ctx: Context) -> str:
        return "pong"

    async def started(self) -> None:
        self.notes.append("starting")
        self.start_soon(self.background)
        await self.may_start.wait()
        if self.fails:
            raise ValueError("this service cannot start")
        self.notes.append("started")

    async def stopped(self) -> None:
        self.notes.append("stopped")

    async def background(self) -> None:
        self.notes.append("background")
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
                await anyio.lowlevel.checkpoint()
            self.notes.append("background ended")


# Start


async def test_a_service_is_announced_only_after_its_started_hook(cluster: Cluster) -> None:
    two = await cluster.start_one("two")
    slow = Recorder()
    slow.may_start = anyio.Event()
    one = cluster.make("one", [slow, Echo()])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.start)
        await two.wait_for_services("echo", timeout=30)
        assert slow.notes[0] == "starting"
        assert not two.registry.has_service("recorder")
        with pytest.raises(ServiceNotFoundError):
            await one.call("recorder.ping")
        slow.may_start.set()
    await two.wait_for_services("recorder", timeout=30)
    assert await two.call("recorder.ping") == "pong"


async def test_a_service_that_cannot_start_fails_the_start_and_leaves_nothing_behind(cluster: Cluster) -> None:
    two = await cluster.start_one("two")
    good, bad = Recorder("good"), Recorder("bad", fails=True)
    one = cluster.make("one", [good, bad])
    with pytest.raises(ValueError, match="this service cannot start"):
        await one.start()
    assert good.notes[-1] == bad.notes[-1] == "stopped"
    assert "background ended" in good.notes
    transport = one._node.transport
    assert transport is not None
    assert not transport.connected
    await eventually(lambda: not any(two.registry.has_service(name) for name in ("good", "bad")))
    with pytest.raises(BrokerDisconnectedError):
        await one.call("good.ping")
    again = await cluster.start_one("one", [Echo()])
    assert await two.call("echo.where", node_id=again.node_id) == "one"


async def test_a_start_that_is_cancelled_leaves_nothing_behind(cluster: Cluster) -> None:
    slow = Recorder()
    slow.may_start = anyio.Event()
    one = cluster.make("one", [slow])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.start)
        await eventually(lambda: "starting" in slow.notes)
        tasks.cancel_scope.cancel()
    assert slow.notes[-1] == "stopped"
    await cluster.start_one("one", [Echo()])


async def test_a_stop_cancels_a_start_in_progress(cluster: Cluster) -> None:
    two = await cluster.start_one("two")
    slow = Recorder()
    slow.may_start = anyio.Event()
    one = cluster.make("one", [slow, Echo()])

    async def start() -> None:
        with pytest.raises(MoleculerServerError, match="was stopped while it started") as refused:
            await one.start()
        assert refused.value.type == "BROKER_STATE"

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(start)
        await two.wait_for_services("echo", timeout=30)
        with anyio.fail_after(30):
            await one.stop()
        slow.may_start.set()
    assert "started" not in slow.notes
    assert slow.notes[-1] == "stopped"
    with pytest.raises(BrokerDisconnectedError, match="not running"):
        await one.call("echo.where")


async def test_a_service_that_stops_its_node_while_it_starts_does_not_wait_for_itself(cluster: Cluster) -> None:
    class Unwilling(Recorder):
        async def started(self) -> None:
            await self.broker.stop()

    unwilling = Unwilling()
    one = cluster.make("one", [unwilling])
    with anyio.fail_after(4), pytest.raises(MoleculerServerError, match="was stopped while it started"):
        await one.start()
    assert unwilling.notes == ["stopped"]


async def test_a_service_removed_while_it_starts_is_not_announced(cluster: Cluster) -> None:
    class Dependent(Recorder):
        dependencies = ("echo",)

    slow, dependent = Recorder("slow"), Dependent("dependent")
    slow.may_start = anyio.Event()
    one = await cluster.start_one("one")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.add_service, slow)
        tasks.start_soon(one.add_service, dependent)
        await eventually(lambda: "starting" in slow.notes)
        with anyio.fail_after(30):
            await one.remove_service("slow")
            await one.remove_service("dependent")
        slow.may_start.set()
        await one.add_service(Echo())
    assert "started" not in slow.notes
    assert slow.notes[-1] == "stopped"
    assert dependent.notes == ["stopped"]
    assert not one.registry.has_service("slow")
    assert not one.registry.has_service("dependent")


async def test_a_service_waits_for_its_dependencies_and_logs_it(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "broker")

    class Dependent(Recorder):
        dependencies = ("echo", "math")

    dependent = Dependent("dependent")
    one = cluster.make("one", [dependent, Math()])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.start)
        await eventually(lambda: one.registry.has_service("math"))
        assert dependent.notes == []
        await cluster.start_one("two", [Echo()])
    assert "started" in dependent.notes
    assert any(message.startswith("Service 'dependent' waits for: echo") for message in caplog.messages)


async def test_a_broker_can_be_started_only_once(cluster: Cluster) -> None:
    one = await cluster.start_one("one")
    with pytest.raises(MoleculerServerError, match="starts once"):
        await one.start()
    await one.stop()
    await one.stop()
    with pytest.raises(MoleculerServerError, match="is stopped"):
        await one.start()
    with pytest.raises(MoleculerServerError, match="takes no more services"):
        await one.add_service(Echo())


async def test_a_call_from_another_event_loop_is_a_clear_error(cluster: Cluster) -> None:
    """An answer cannot wake a task of another event loop, so the call would never return."""
    one = await cluster.start_one("one", [Echo()])
    uses: list[Callable[[], Awaitable[Any]]] = [
        partial(one.call, "echo.where"),
        partial(one.emit, "an.event"),
        partial(one.mcall, [{"action": "echo.where"}]),
        partial(one.wait_for_services, "missing"),
        partial(one.remove_service, "echo"),
        one.stop,
    ]
    for use in uses:
        with pytest.raises(MoleculerServerError, match="this is another one"):
            await anyio.to_thread.run_sync(anyio.run, use)
    assert await one.call("echo.where") == "one"


async def test_c8_a_duplicate_node_id_is_a_clear_error_and_the_running_node_stays(cluster: Cluster) -> None:
    one, two = await cluster.start(("one", [Echo()]), ("two", []))
    taken = cluster.make("one", [Math()])
    with pytest.raises(BrokerOptionsError, match="Another node with the id 'one' is running"):
        await taken.start()
    assert await two.call("echo.where") == "one"
    assert one._node.failure is None
    assert two.registry.nodes["one"].available
    assert not two.registry.has_service("math")


async def test_c8_a_node_whose_id_was_taken_over_stops_and_logs_why(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    one = await cluster.start_one("one", [Echo()])
    peer = await cluster.raw_peer("peer", "INFO", "DISCONNECT")
    info = {"ver": "5", "sender": "one", "services": [], "instanceID": "another process", "seq": 1}
    await peer.publish(cluster.topics.broadcast("INFO"), info)
    with anyio.fail_after(30), pytest.raises(BrokerOptionsError, match="'one' has joined, so this one stops"):
        await one.wait_stopped()
    await one.stop()
    sent = [packet for name, packet in peer.received if name == "DISCONNECT"]
    assert sent == [], "a DISCONNECT would also remove the new node"
    assert any(record.levelno == logging.CRITICAL for record in caplog.records)


async def test_a_node_id_can_be_used_again_after_a_stop(cluster: Cluster) -> None:
    two = await cluster.start_one("two")
    for _ in range(2):
        one = await cluster.start_one("one", [Echo()])
        await two.wait_for_services("echo", timeout=30)
        assert await two.call("echo.where") == "one"
        await one.stop()
        await eventually(lambda: not two.registry.has_service("echo"))


# Changes of services


async def test_services_can_be_added_and_removed_while_the_node_runs(cluster: Cluster) -> None:
    one, two = await cluster.start(("one", [Echo()]), ("two", []))
    recorder = Recorder()
    await one.add_service(recorder)
    await two.wait_for_services("recorder", timeout=30)
    assert await two.call("recorder.ping") == "pong"
    await one.remove_service(recorder)
    assert recorder.notes == ["starting", "background", "started", "background ended", "stopped"] or recorder.notes == [
        "starting",
        "started",
        "background",
        "background ended",
        "stopped",
    ]
    await eventually(lambda: not two.registry.has_service("recorder"))
    for broker in (one, two):
        with pytest.raises(ServiceNotAvailableError):
            await broker.call("recorder.ping")
    assert await two.call("echo.where") == "one"
    await one.add_service(Recorder())
    await two.wait_for_services("recorder", timeout=30)
    assert await two.call("recorder.ping") == "pong"


async def test_removing_an_unknown_service_is_a_clear_error(cluster: Cluster) -> None:
    one = await cluster.start_one("one")
    for service in ("echo", Echo()):
        with pytest.raises(ServiceNotFoundError):
            await one.remove_service(service)


async def test_a_service_that_fails_to_start_later_is_not_kept(cluster: Cluster) -> None:
    one = await cluster.start_one("one", [Echo()])
    with pytest.raises(ValueError, match="cannot start"):
        await one.add_service(Recorder(fails=True))
    await one.add_service(Recorder())
    assert await one.call("recorder.ping") == "pong"


async def test_a_service_can_add_another_while_it_starts(cluster: Cluster) -> None:
    class Parent(Service):
        name = "parent"

        async def started(self) -> None:
            await self.broker.add_service(Recorder("child"))

    one, two = await cluster.start(("one", [Parent()]), ("two", []))
    await two.wait_for_services("child", timeout=30)
    assert await one.call("child.ping") == "pong"


async def test_a_duplicate_service_or_action_name_is_refused(cluster: Cluster) -> None:
    class Prefixless(Service):
        name = "prefixless"
        settings = {"$noServiceNamePrefix": True}  # noqa: RUF012 - as users write it

        @action(name="echo.where")
        async def where(self, ctx: Context) -> None: ...

    one = await cluster.start_one("one", [Echo()])
    for service in (Echo(), Prefixless()):
        with pytest.raises(ServiceSchemaError, match="already"):
            await one.add_service(service)


async def test_a_service_that_cannot_be_encoded_as_json_is_refused(cluster: Cluster) -> None:
    class Odd(Service):
        name = "odd"
        settings = {"handler": object()}  # noqa: RUF012 - as users write it

    with pytest.raises(ServiceSchemaError, match="have no JSON form"):
        cluster.make("one", [Odd()])


async def test_metadata_that_cannot_be_encoded_as_json_is_refused(cluster: Cluster) -> None:
    with pytest.raises(BrokerOptionsError, match="metadata"):
        cluster.make("one", metadata={"odd": object()})


async def test_a_failing_background_task_is_logged_and_stops_nothing_else(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Echo):
        async def started(self) -> None:
            self.start_soon(self.fail)

        async def fail(self) -> None:
            raise RuntimeError("in the background")

    one = await cluster.start_one("one", [Failing()])
    await eventually(lambda: "Background work of service 'echo' failed" in caplog.text)
    assert await one.call("echo.where") == "one"


async def test_waiting_for_services_ends_when_they_are_available_or_time_runs_out(cluster: Cluster) -> None:
    one = await cluster.start_one("one", [Echo()])
    await one.wait_for_services("echo", timeout=0.01)
    with pytest.raises(MoleculerServerError) as caught:
        await one.wait_for_services("echo", "math", "posts", timeout=0.05)
    assert caught.value.type == "WAITFOR_SERVICES"
    assert caught.value.data == {"services": ["echo", "math", "posts"], "missing": ["math", "posts"]}
    assert "math, posts" in str(caught.value)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.wait_for_services, "math")
        await cluster.start_one("two", [Math()])


async def test_a_ping_measures_the_round_trip(cluster: Cluster) -> None:
    one, _ = await cluster.start(("one", [Echo()]), ("two", [Math()]))
    pong = await one.ping("two", 30)
    assert pong is not None
    assert pong["nodeID"] == "two"
    assert 0 <= pong["elapsedTime"] < 30_000
    assert abs(pong["timeDiff"]) < 30_000
    assert await one.ping("missing", 0.05) is None


# Stop


async def test_c33_a_stop_sends_its_packets_in_the_order_of_moleculer_js(cluster: Cluster) -> None:
    one = await cluster.start_one("one", [Echo()])
    peer = await cluster.raw_peer("peer", "INFO", "DISCONNECT", "RES")
    await peer.publish(cluster.topics.broadcast("DISCOVER"), {"ver": "5", "sender": "peer"})
    before = await peer.wait_for("INFO")
    await one.stop()
    last = await peer.wait_for("DISCONNECT")
    assert last == {"ver": "5", "sender": "one"}
    *_, info = [packet for name, packet in peer.received if name == "INFO"]
    assert info["services"] == []
    assert info["seq"] > before["seq"]
    assert peer.received[-1][0] == "DISCONNECT"


async def test_a_stopping_node_finishes_calls_in_flight(cluster: Cluster) -> None:
    gate = Gate()
    one, two = await cluster.start(("one", [gate]), ("two", []))
    answers: list[Any] = []

    async def call() -> None:
        answers.append(await two.call("gate.wait"))

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(call)
        await eventually(lambda: gate.inside == 5)
        tasks.start_soon(one.stop)
        await eventually(lambda: one._node.transit.stopping)
        peer = await cluster.raw_peer("peer", "RES")
        refusal = await peer.ask("one", "gate.wait")
        assert refusal["error"]["name"] == "ServiceNotAvailableError"
        gate.opened.set()
    assert answers == ["one"] * 5


async def test_a_stopping_node_finishes_event_handlers_in_progress(cluster: Cluster) -> None:
    class Slow(Service):
        name = "slow"
        begun = finished = 0
        release = anyio.Event()

        @event("slow.thing")
        async def on_thing(self, ctx: Context) -> None:
            self.begun += 1
            await self.release.wait()
            self.finished += 1

    slow = Slow()
    one, two = await cluster.start(("one", [slow]), ("two", []))
    await two.emit("slow.thing")
    await eventually(lambda: slow.begun == 1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.stop)
        await eventually(lambda: one._node.transit.stopping)
        Slow.release.set()
    assert slow.finished == 1


async def test_calls_that_a_stop_cancels_are_rejected_whether_running_or_queued(cluster: Cluster) -> None:
    gate = Gate()
    queue = {"enabled": True, "concurrency": 1}
    one = await cluster.start_one("one", [gate], shutdown_timeout=0.05, bulkhead=queue)
    two = await cluster.start_one("two")
    async with anyio.create_task_group() as tasks:

        async def call() -> None:
            with pytest.raises(RequestRejectedError) as caught:
                await two.call("gate.wait")
            assert (caught.value.code, caught.value.retryable, caught.value.node_id) == (503, True, "one")

        for _ in range(2):
            tasks.start_soon(call)
        await eventually(lambda: len(one._node.transit.in_work) == 2)
        await one.stop()
    assert gate.cancelled == 1


async def test_a_stopping_node_rejects_its_own_pending_calls(cluster: Cluster) -> None:
    gate = Gate()
    _, two = await cluster.start(("one", [gate]), ("two", []))
    async with anyio.create_task_group() as tasks:

        async def call() -> None:
            with pytest.raises(BrokerDisconnectedError, match="stopped"):
                await two.call("gate.wait")

        tasks.start_soon(call)
        await eventually(lambda: gate.inside == 1)
        await two.stop()
    gate.opened.set()


async def test_services_stop_in_reverse_order_after_their_background_tasks(cluster: Cluster) -> None:
    order: list[str] = []

    class Ordered(Recorder):
        async def stopped(self) -> None:
            assert self.notes[-1] == "background ended", "background work ends before `stopped`"
            order.append(self.name)

    one = await cluster.start_one("one", [Ordered("first"), Ordered("second"), Ordered("third")])
    await one.stop()
    assert order == ["third", "second", "first"]


class Leaving(Service):
    """Stops its node, or removes itself, from its own handlers and tasks."""

    name = "leaving"

    def __init__(self) -> None:
        self.notes: list[str] = []

    @action
    async def stop_node(self, ctx: Context) -> str:
        await self.broker.stop()
        return "stopping"

    @action
    async def stop_node_soon(self, ctx: Context) -> None:
        self.start_soon(self.broker.stop)

    @action
    async def withdraw(self, ctx: Context) -> str:
        await self.broker.remove_service(self)
        self.notes.append("still here")
        return "withdrawn"

    @action
    async def withdraw_soon(self, ctx: Context) -> None:
        self.start_soon(self.broker.remove_service, self)

    async def stopped(self) -> None:
        self.notes.append("stopped")


async def test_a_handler_that_stops_its_node_still_answers(cluster: Cluster) -> None:
    leaving = Leaving()
    one, two = await cluster.start(("one", [leaving]), ("two", []))
    with anyio.fail_after(30):
        assert await two.call("leaving.stop_node") == "stopping"
        await one.wait_stopped()
        await one.stop()
    assert leaving.notes == ["stopped"]


async def test_a_locally_called_handler_can_stop_its_node(cluster: Cluster) -> None:
    leaving = Leaving()
    one = await cluster.start_one("one", [leaving], shutdown_timeout=30)
    with anyio.fail_after(20):
        assert await one.call("leaving.stop_node") == "stopping"
        await one.stop()
    assert leaving.notes == ["stopped"]


@pytest.mark.parametrize("place", ["remote_action", "error_handler", "fallback"])
async def test_code_around_a_remote_call_can_stop_the_calling_node(cluster: Cluster, place: str) -> None:
    class Stopping(Middleware):
        async def remote_action(self, call_next: Next, ctx: Context) -> Any:
            return await stop(ctx)

    async def stop(ctx: Any, *_: Any) -> str:
        await one.stop()
        return "stopped" if one._node.stopped.is_set() else "stopping"

    around: dict[str, Any] = {"remote_action": {"middlewares": [Stopping()]}, "error_handler": {"error_handler": stop}}
    options: Any = {"fallback": stop} if place == "fallback" else {}
    one = await cluster.start_one("one", [], shutdown_timeout=2, **around.get(place, {}))
    await cluster.start_one("two", [Echo()])
    with anyio.fail_after(20):
        assert await one.call("echo.meta", {"fail": True}, **options) == "stopping"
        await one.stop()


async def test_a_background_task_can_stop_its_node(cluster: Cluster) -> None:
    leaving = Leaving()
    one, two = await cluster.start(("one", [leaving]), ("two", []))
    with anyio.fail_after(30):
        await two.call("leaving.stop_node_soon")
        await one.wait_stopped()
        await one.stop()
    assert leaving.notes == ["stopped"]


async def test_a_background_task_can_remove_its_service(cluster: Cluster) -> None:
    leaving = Leaving()
    one = await cluster.start_one("one", [leaving])
    await one.call("leaving.withdraw_soon")
    await eventually(lambda: leaving.notes == ["stopped"])
    with pytest.raises(ServiceNotAvailableError):
        await one.call("leaving.withdraw_soon")


@pytest.mark.parametrize("caller", ["one", "two"])
async def test_a_handler_that_removes_its_own_service_still_answers(cluster: Cluster, caller: str) -> None:
    leaving = Leaving()
    one, two = await cluster.start(("one", [leaving]), ("two", []), shutdown_timeout=60)
    with anyio.fail_after(30):
        assert await (one if caller == "one" else two).call("leaving.withdraw") == "withdrawn"
        await eventually(lambda: leaving.notes == ["still here", "stopped"])


async def test_a_second_removal_of_a_service_reports_that_it_is_gone(cluster: Cluster) -> None:
    one, two = await cluster.start(("one", [Recorder(), Echo()]), ("two", []))
    refused = 0

    async def withdraw() -> None:
        nonlocal refused
        try:
            await one.remove_service("recorder")
        except ServiceNotFoundError:
            refused += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(withdraw)
        tasks.start_soon(withdraw)
    assert refused == 1
    assert await two.call("echo.where") == "one"
    await one.stop()


async def test_a_stopping_node_waits_for_a_service_that_is_being_removed(cluster: Cluster) -> None:
    class Slow(Recorder):
        leaving = anyio.Event()
        may_leave = anyio.Event()

        async def stopped(self) -> None:
            self.leaving.set()
            await self.may_leave.wait()
            await super().stopped()

    slow, last = Slow(), Recorder("last")
    one = await cluster.start_one("one", [slow, last])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.remove_service, slow)
        await slow.leaving.wait()
        tasks.start_soon(one.stop)
        await eventually(lambda: last.notes[-1] == "stopped")
        slow.may_leave.set()
    assert slow.notes[-1] == "stopped"


async def test_a_service_can_be_removed_while_its_node_stops(cluster: Cluster) -> None:
    first = Recorder("first")

    class Last(Recorder):
        async def stopped(self) -> None:
            await self.broker.remove_service(first)
            await super().stopped()

    last = Last("last")
    one = await cluster.start_one("one", [first, last])
    await one.stop()
    await one.wait_stopped()
    assert (first.notes[-1], last.notes[-1]) == ("stopped", "stopped")


async def test_a_second_stop_waits_for_the_first(cluster: Cluster) -> None:
    gate = Gate()
    one, two = await cluster.start(("one", [gate]), ("two", []))
    ended: list[str] = []

    async def stop(name: str) -> None:
        await one.stop()
        ended.append(name)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(two.call, "gate.wait")
        await eventually(lambda: gate.inside == 1)
        tasks.start_soon(stop, "first")
        tasks.start_soon(stop, "second")
        await eventually(lambda: one._node.transit.stopping)
        assert ended == []
        gate.opened.set()
    assert sorted(ended) == ["first", "second"]


async def test_a_service_that_does_not_stop_cleanly_is_logged(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Echo):
        async def stopped(self) -> None:
            raise RuntimeError("while stopping")

    recorder = Recorder()
    one = await cluster.start_one("one", [recorder, Failing()])
    await one.stop()
    assert "Service 'echo' did not stop cleanly" in caplog.text
    assert recorder.notes[-1] == "stopped"


async def test_a_leaving_node_serves_until_every_peer_knows(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.defaults.STOP_READ_S", DEADLINE_S)
    one = await cluster.start_one("one", [Echo()])
    slow = await cluster.raw_peer("slow", "INFO", "PING", "RES")
    await slow.introduce()
    await eventually(lambda: "slow" in one.registry.nodes)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.stop)
        ping = await slow.wait_for("PING")
        await slow.wait_for("INFO", lambda info: info["sender"] == "one" and info["services"] == [])
        for _ in range(3):
            assert (await slow.ask("one", "echo.where"))["data"] == "one"
        pong = {"ver": "5", "sender": "slow", "id": ping["id"], "time": ping["time"], "arrived": ping["time"]}
        await slow.publish(cluster.topics.to_node("PONG", "one"), pong)


async def test_a_rolling_restart_under_load_fails_no_call(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.defaults.STOP_READ_S", DEADLINE_S)
    caller = await cluster.start_one("caller")
    nodes = [await cluster.start_one(f"node-{number}", [Echo()]) for number in range(2)]
    answers: dict[str, int] = {}
    running = True

    async def load() -> None:
        while running:
            answer = await caller.call("echo.where", timeout=30)
            answers[answer] = answers.get(answer, 0) + 1

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(load)
        await eventually(lambda: len(answers) == 2)
        for number in range(2):
            counted = dict(answers)
            await nodes[number].stop()
            new = await cluster.start_one(f"new-{number}", [Echo()])
            await eventually(lambda new=new: answers.get(new.node_id, 0) > 20)  # type: ignore[misc]  # a lambda's default
            assert answers != counted
        running = False
    assert set(answers) == {"node-0", "node-1", "new-0", "new-1"}


# Killed nodes


async def test_calls_to_a_killed_node_fail_at_once_or_go_to_another(cluster: Cluster) -> None:
    one, caller = await cluster.start(("one", [Echo()]), ("caller", []), heartbeat_timeout=3600)
    await cluster.kill(one)
    with pytest.raises(RequestRejectedError) as caught:
        await caller.call("echo.where")
    assert caught.value.data == {"action": "echo.where", "nodeID": "one"}
    assert caught.value.retryable is True
    with pytest.raises(ServiceNotAvailableError):
        await caller.call("echo.where")


async def test_no_call_fails_after_one_of_two_nodes_was_killed(cluster: Cluster) -> None:
    one, two, caller = await cluster.start(("one", [Echo()]), ("two", [Echo()]), ("caller", []), heartbeat_timeout=3600)
    await cluster.kill(one)
    answers: list[str] = []

    async def call() -> None:
        answers.append(await caller.call("echo.where"))

    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(call)
    assert answers == ["two"] * 50
    assert not caller.registry.nodes["one"].available
    assert two.registry.nodes["one"].available, "node two has not been notified yet"


async def test_calls_in_flight_at_a_killed_node_are_rejected_when_its_loss_is_noticed(cluster: Cluster) -> None:
    gate = Gate()
    one, caller = await cluster.start(("one", [gate]), ("caller", []), heartbeat_timeout=3600)
    errors: list[MoleculerError] = []

    async def call() -> None:
        try:
            await caller.call("gate.wait")
        except MoleculerError as error:
            errors.append(error)

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(call)
        await eventually(lambda: gate.inside == 3)
        await cluster.kill(one)
        with pytest.raises(MoleculerError):
            await caller.call("gate.wait")
    assert [type(error) for error in errors] == [RequestRejectedError] * 3
    gate.opened.set()


async def test_a_node_that_reconnects_answers_old_calls_and_is_rediscovered_at_once(
    cluster: Cluster,
) -> None:
    """Calls made meanwhile wait for the node."""
    service = {"name": "posts", "actions": {"posts.find": {"name": "posts.find"}}}
    caller = await cluster.start_one("caller", heartbeat_timeout=3600)
    away = await cluster.raw_peer("js-1", "REQ", "RES", "PING", "DISCOVER")
    await away.introduce(service)
    await caller.wait_for_services("posts", timeout=30)
    answers: list[Any] = []

    async def call() -> None:
        answers.append(await caller.call("posts.find"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        request = await away.wait_for("REQ")
        await cluster.cut_off(away)
        tasks.start_soon(call)
        await eventually(lambda: not caller.registry.nodes["js-1"].available)
        back = await cluster.raw_peer("js-1", "REQ", "RES", "PING", "DISCOVER")  # sends nothing, like a JS node
        await back.wait_for("DISCOVER", lambda packet: packet["sender"] == "caller")
        await back.introduce(service)
        for asked in (request, await back.wait_for("REQ")):
            answer = {"ver": "5", "sender": "js-1", "id": asked["id"], "success": True, "data": "found"}
            await back.publish(cluster.topics.to_node("RES", "caller"), answer)
    assert answers == ["found"] * 2


async def test_c28_a_silent_node_is_lost_after_its_heartbeat_timeout(cluster: Cluster) -> None:
    gate = Gate()
    one, caller = await cluster.start(("one", [gate]), ("caller", []), heartbeat_interval=0.05, heartbeat_timeout=0.3)
    async with anyio.create_task_group() as tasks:

        async def call() -> None:
            with pytest.raises(RequestRejectedError):
                await caller.call("gate.wait")

        tasks.start_soon(call)
        await eventually(lambda: gate.inside == 1)
        await cluster.kill(one)
    assert not caller.registry.nodes["one"].available
    gate.opened.set()


async def test_heartbeats_keep_a_busy_node_alive(cluster: Cluster) -> None:
    one, caller = await cluster.start(
        ("one", [Gate(), Listener()]), ("caller", []), heartbeat_interval=0.05, heartbeat_timeout=0.5
    )
    first = caller.registry.nodes["one"].last_heartbeat
    await eventually(lambda: caller.registry.nodes["one"].last_heartbeat > first + 1)
    assert caller.registry.nodes["one"].available
    assert one._node.failure is None


async def test_c27_a_node_is_discovered_by_its_heartbeat(cluster: Cluster) -> None:
    one = await cluster.start_one("one")
    peer = await cluster.raw_peer("peer", "DISCOVER")
    await peer.publish(cluster.topics.broadcast("HEARTBEAT"), {"ver": "4", "sender": "peer", "cpu": 3})
    assert await peer.wait_for("DISCOVER", lambda packet: packet["sender"] == "one") == {"ver": "4", "sender": "one"}
    await peer.introduce({"name": "posts"}, ver="4")
    await one.wait_for_services("posts", timeout=30)
    assert one.registry.nodes["peer"].ver == "4"


async def test_cancelling_a_call_anywhere_leaves_nothing_pending(cluster: Cluster) -> None:
    """The call is cancelled after every possible number of loop steps: it is forgotten and the broker keeps working."""
    gate = Gate()
    _, two = await cluster.start(("one", [gate, Echo()]), ("two", []))
    for steps in range(15):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(two.call, "gate.wait")
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        assert two._node.transit.requests.pending == {}
    assert await two.call("echo.where") == "one"
    gate.opened.set()
