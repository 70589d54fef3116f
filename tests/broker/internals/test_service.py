"""`$node`: announced as JS nodes announce theirs, and lenient with the booleans that tools send."""

from typing import Any

import pytest

from broker import Context, MoleculerClientError, Service, ServiceBroker, ValidationError, action
from broker.internals.service import NodeService
from broker.services.service import define
from tests.support.transits import captured_packet

pytestmark = pytest.mark.anyio


class Greeter(Service):
    name = "greeter"

    @action
    async def hello(self, ctx: Context) -> str:
        return "hello"


@pytest.mark.parametrize("version", ["4", "5"])
def test_c16_it_is_announced_exactly_as_a_js_node_announces_its_own(version: Any) -> None:
    announced = captured_packet(version, 2)["services"][0]
    assert define(NodeService()).to_info() == announced


async def test_it_is_listed_first_whatever_else_there_is() -> None:
    async with ServiceBroker("py", services=[Greeter()]) as broker:
        assert [service["fullName"] for service in broker.registry.local.services] == ["$node", "greeter"]


async def test_it_can_be_left_out() -> None:
    async with ServiceBroker("py", services=[Greeter()], internal_services=False) as broker:
        assert [service["fullName"] for service in broker.registry.local.services] == ["greeter"]


@pytest.mark.parametrize("value", [True, 1, "true", "1", "on"])
async def test_booleans_come_in_every_form_that_js_converts(value: Any) -> None:
    async with ServiceBroker("py", services=[Greeter()]) as broker:
        rows = await broker.call("$node.services", {"skipInternal": value, "grouping": not value})
    assert [row["nodeID"] for row in rows] == ["py"]


@pytest.mark.parametrize("value", [False, 0, "false", "0", "off", None])
async def test_what_is_off_or_missing_is_off(value: Any) -> None:
    async with ServiceBroker("py", services=[Greeter()]) as broker:
        assert len(await broker.call("$node.services", {"skipInternal": value})) == 2
        assert len(await broker.call("$node.services", {"skipInternal": value, "unknown": 1})) == 2


@pytest.mark.parametrize("value", ["yes", 2, [], {}])
async def test_c58_what_is_not_a_boolean_is_refused(value: Any) -> None:
    async with ServiceBroker("py") as broker:
        with pytest.raises(ValidationError) as caught:
            await broker.call("$node.list", {"onlyAvailable": value})
    [item] = caught.value.data
    assert (item["type"], item["field"], item["actual"]) == ("boolean", "onlyAvailable", value)
    assert (item["nodeID"], item["action"]) == ("py", "$node.list")


async def test_params_that_are_not_an_object_are_refused() -> None:
    async with ServiceBroker("py") as broker:
        with pytest.raises(ValidationError):
            await broker.call("$node.list", [1])


async def test_without_metrics_it_says_so_in_the_words_of_js() -> None:
    async with ServiceBroker("py") as broker:
        with pytest.raises(MoleculerClientError, match="Metrics feature is disabled") as caught:
            await broker.call("$node.metrics", {"includes": ["a.*"], "types": "counter"})
        with pytest.raises(ValidationError):
            await broker.call("$node.metrics", {"includes": 5})
    assert (caught.value.code, caught.value.type) == (400, "METRICS_DISABLED")


async def test_actions_events_health_and_options_answer() -> None:
    async with ServiceBroker("py", services=[Greeter()], namespace="n") as broker:
        actions = await broker.call("$node.actions", {"skipInternal": "true", "withEndpoints": "1"})
        assert actions[0]["endpoints"] == [{"nodeID": "py", "state": True, "available": True}]
        assert await broker.call("$node.events") == []
        assert (await broker.call("$node.health"))["client"]["type"] == "python"
        assert (await broker.call("$node.options"))["namespace"] == "n"
