"""The services of a node: started once, run while offered, gone when stopped. Over transports: test_broker_life.py."""

import anyio
import pytest

from broker import Context, Service, ServiceBroker, ServiceNotFoundError, action
from tests.support.example_services import Echo

pytestmark = pytest.mark.anyio


async def test_a_service_knows_its_broker_and_its_logger_before_it_starts() -> None:
    class Knowing(Service):
        name = "knowing"
        version = 2

        async def started(self) -> None:
            assert self.broker.node_id == "one"
            assert self.logger.name == "broker.v2.knowing"

    async with ServiceBroker("one", services=[Knowing()]):
        pass


async def test_an_action_that_was_removed_between_choice_and_run_is_not_found() -> None:
    async with ServiceBroker("one", services=[Echo()]) as broker:
        endpoint = broker.registry.find_action("echo.where")
        await broker.remove_service("echo")
        assert endpoint.action is not None
        with pytest.raises(ServiceNotFoundError) as caught:
            await broker._host.run(endpoint.action, Context.outgoing(broker, "one"))
        assert caught.value.data == {"action": "echo.where", "nodeID": "one"}


async def test_a_protected_action_is_called_here_and_a_private_one_nowhere() -> None:
    class Guarded(Service):
        name = "guarded"

        @action(visibility="protected")
        async def inner(self, ctx: Context) -> str:
            return "inner"

        @action(visibility="private")
        async def hidden(self, ctx: Context) -> str:
            return "hidden"

    async with ServiceBroker("one", services=[Guarded()]) as broker:
        assert await broker.call("guarded.inner") == "inner"
        with pytest.raises(ServiceNotFoundError):
            await broker.call("guarded.hidden")


async def test_background_work_may_end_by_itself() -> None:
    class Short(Echo):
        async def started(self) -> None:
            self.done = anyio.Event()
            self.start_soon(self.work, 1, 2)

        async def work(self, *arguments: int) -> None:
            assert arguments == (1, 2)
            self.done.set()

    short = Short()
    async with ServiceBroker("one", services=[short]):
        with anyio.fail_after(30):
            await short.done.wait()
