"""`$node`: announced as JS nodes announce theirs, and lenient with the booleans that tools send."""

from typing import Any

import msgspec
import pytest

from broker import Context, MoleculerClientError, Service, ServiceBroker, ValidationError, action
from broker.internals.service import NodeService, show_options
from broker.options import make_options
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


# `$node.options`


def shown(**given: Any) -> dict[str, Any]:
    return show_options(make_options({"node_id": "py", **given}, {}))


def test_names_and_units_are_those_of_moleculer() -> None:
    options = shown(namespace="test", request_timeout=2.5, heartbeat_interval=5.0, prefer_local=False)
    assert options["nodeID"] == "py"
    assert options["namespace"] == "test"
    assert options["requestTimeout"] == 2500
    assert options["heartbeatInterval"] == 5.0
    assert options["registry"]["preferLocal"] is False
    assert options["registry"]["strategy"] == "RoundRobin"
    assert options["tracking"] == {"enabled": True, "shutdownTimeout": 5000}
    assert options["internalServices"] is True


@pytest.mark.parametrize(
    ("transporter", "expected"),
    [
        ("nats://user:hidden@a:4222,nats://user:hidden@b:4222", "nats://***@a:4222,nats://***@b:4222"),
        ("user:hidden@host:4222", "nats://***@host:4222"),
        (["nats://user:hidden@a:4222"], ["nats://***@a:4222"]),
        (None, None),
    ],
)
def test_the_transporter_is_shown_without_its_password(transporter: Any, expected: Any) -> None:
    assert shown(transporter=transporter)["transporter"] == expected


def test_no_secret_of_the_transporter_and_no_function_is_shown() -> None:
    async def around(call_next: Any, ctx: Any) -> Any:
        return await call_next(ctx)

    options = shown(transporter_options={"token": "hidden", "password": "hidden", "name": "n"}, middlewares=[around])
    assert options["transporterOptions"] == {"token": "***", "password": "***", "name": "n"}
    assert b"hidden" not in msgspec.json.encode(options)
