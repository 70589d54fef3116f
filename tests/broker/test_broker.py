"""A broker alone, without a cluster; with others it is in contract/test_broker*.py."""

import gc
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import pytest

from broker import (
    BrokerDisconnectedError,
    BrokerOptionsError,
    MoleculerServerError,
    ServiceBroker,
    ServiceNotFoundError,
    ServiceSchemaError,
)
from tests.support.example_services import Echo, Listener, Math, Relay
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio


async def test_without_a_transporter_a_broker_serves_itself() -> None:
    listener = Listener()
    async with ServiceBroker("one", services=[Math(), Relay(), listener]) as broker:
        assert await broker.call("math.add", {"a": 1, "b": 2}) == 3
        assert await broker.call("relay.forward", {"action": "math.add", "params": {"a": 2, "b": 2}}) == 4
        await broker.emit("user.created", 1)
        await broker.broadcast("user.created", 2)
        await eventually(lambda: len(listener.received) == 4)
        with pytest.raises(ServiceNotFoundError):
            await broker.call("echo.where")
        assert await broker.ping("two", 0.01) is None


async def test_before_the_start_and_after_the_stop_nothing_is_sent() -> None:
    broker = ServiceBroker("one", services=[Echo()])
    with pytest.raises(BrokerDisconnectedError, match="start it first"):
        await broker.call("echo.where")
    await broker.start()
    await broker.stop()
    with pytest.raises(BrokerDisconnectedError):
        await broker.call("echo.where")
    await broker.wait_stopped()


async def test_an_option_that_calls_do_not_have_is_named() -> None:
    async with ServiceBroker("one", services=[Echo()]) as broker:
        wrong: Any = {"retrys": 2}
        with pytest.raises(TypeError, match=r"A call has no option 'retrys'; there are meta, .*, caller\."):
            await broker.call("echo.where", **wrong)


async def test_who_waits_for_services_is_told_that_the_broker_stops() -> None:
    broker = ServiceBroker("one")
    await broker.start()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(broken_off, partial(broker.wait_for_services, "users"))
        await anyio.wait_all_tasks_blocked()
        await broker.stop()
    await broken_off(partial(broker.wait_for_services, "users"))
    await broken_off(broker.registry_changed)


async def broken_off(waiting: Callable[[], Awaitable[None]]) -> None:
    with pytest.raises(BrokerDisconnectedError, match="has stopped"):
        await waiting()


@pytest.mark.parametrize("names", [(["users", "posts"],), ("users", 5000)])
async def test_what_is_no_name_of_a_service_is_not_waited_for(names: Any) -> None:
    async with ServiceBroker("one") as broker:
        with pytest.raises(TypeError, match="wait_for_services"):
            await broker.wait_for_services(*names)


async def test_background_work_needs_a_service_that_runs() -> None:
    class Late(Echo):
        failure: MoleculerServerError | None = None

        async def stopped(self) -> None:
            try:
                self.start_soon(anyio.sleep, 0)
            except MoleculerServerError as error:
                self.failure = error

    service = Late()
    broker = ServiceBroker("one", services=[service])
    with pytest.raises(MoleculerServerError, match="'echo' does not run") as caught:
        service.start_soon(anyio.sleep, 0)
    assert caught.value.type == "BROKER_STATE"
    await broker.start()
    service.start_soon(anyio.sleep, 0)
    await broker.stop()
    assert service.failure is not None
    with pytest.raises(MoleculerServerError, match="'echo' does not run"):
        service.start_soon(anyio.sleep, 0)


async def test_a_stop_before_the_start_is_quiet() -> None:
    await ServiceBroker("one").stop()


async def test_start_and_stop_may_come_from_different_tasks() -> None:
    broker = ServiceBroker("one", services=[Echo()])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(broker.start)
    assert await broker.call("echo.where") == "one"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(broker.stop)


async def test_an_error_in_the_block_stops_the_broker_and_passes() -> None:
    with pytest.raises(ZeroDivisionError):
        async with ServiceBroker("one") as broker:
            raise ZeroDivisionError
    with pytest.raises(BrokerDisconnectedError):
        await broker.call("echo.where")


@pytest.mark.parametrize("node_id", ["a b", "a.*", ".a", "a\n"])
def test_a_node_id_that_cannot_be_in_a_subject_is_refused(node_id: str) -> None:
    with pytest.raises(BrokerOptionsError, match="node id"):
        ServiceBroker(node_id)


def test_options_of_the_environment_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_NODE_ID", "from-environment")
    monkeypatch.setenv("BROKER_REQUEST_TIMEOUT", "2.5")
    broker = ServiceBroker(request_timeout=7)
    assert broker.node_id == "from-environment"
    assert broker.options.request_timeout == 7


async def test_nothing_is_left_of_a_broker_that_was_stopped() -> None:
    for _ in range(3):
        async with ServiceBroker("one", transporter="memory://left", services=[Echo()]) as broker:
            assert await broker.call("echo.where") == "one"
    gc.collect()
    others = [task for task in anyio.get_running_tasks() if "moleculer" in (task.name or "")]
    assert others == []


async def test_a_service_belongs_to_one_node_at_a_time() -> None:
    echo = Echo()
    async with ServiceBroker("one", services=[echo]) as one:
        with pytest.raises(ServiceSchemaError, match="'echo' belongs to the node 'one' already"):
            ServiceBroker("two", services=[echo])
        await one.remove_service(echo)
        async with ServiceBroker("two", services=[echo]) as two:
            assert await two.call("echo.where") == "two"
    async with ServiceBroker("three", services=[echo]) as three:
        assert await three.call("echo.where") == "three"


def test_services_that_are_no_list_are_refused() -> None:
    with pytest.raises(BrokerOptionsError, match="must be a list of services"):
        ServiceBroker("one", services=Echo())  # type: ignore[arg-type]  # what a user may write


@pytest.mark.parametrize("send", ["emit", "broadcast", "broadcast_local"])
async def test_an_option_that_events_do_not_have_is_refused(send: str) -> None:
    async with ServiceBroker("one") as broker:
        with pytest.raises(TypeError, match=r"no option 'node_id'; there are groups, meta, headers, parent"):
            await getattr(broker, send)("user.created", node_id="two")


async def test_one_group_may_be_named_without_a_list() -> None:
    listener = Listener()
    async with ServiceBroker("one", services=[listener]) as broker:
        await broker.broadcast_local("user.created", 1, groups="listeners")
        await broker.broadcast_local("user.created", 2, groups="listener")
        await eventually(lambda: listener.received)
        assert {payload for _, _, payload in listener.received} == {2}


def test_a_broker_says_that_it_needs_asyncio() -> None:
    """Trio runs coroutines without a loop of asyncio, too."""
    broker = ServiceBroker()
    with pytest.raises(MoleculerServerError, match="runs on asyncio"):
        broker.start().send(None)
    with pytest.raises(BrokerDisconnectedError, match="start it first"):
        broker.call("any.action").send(None)
