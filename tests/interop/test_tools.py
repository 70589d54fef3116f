"""JS tools read a Python node like a JS one: `$node`, moleculer-repl, and published parameters."""

import json
import re
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta, Struct

from broker import Context, Service, ServiceBroker, ValidationError, action, event
from broker.protocol.codecs.json import JSONCodec
from tests.support.js_node import VERSIONS, JsError, JsNode, js_node
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

NULL = msgspec.Raw(b"null")


class Address(Struct):
    street: str
    number: int = 1


class Shop(Service):
    """Parameters of many types."""

    name = "shop"
    version = 2

    def __init__(self) -> None:
        self.orders: list[Any] = []

    @action
    async def order(
        self,
        ctx: Context,
        item: Annotated[str, Meta(min_length=2, max_length=5, pattern="^[a-z]+$")],
        count: Annotated[int, Meta(ge=1, lt=10)] = 1,
        price: Annotated[float, Meta(gt=0)] = 1.5,
        color: Literal["red", "green"] = "red",
        gift: bool = False,
        note: str | None = None,
        tags: Annotated[list[str], Meta(max_length=2)] = [],  # noqa: B006  # copied for each call
        address: Address | None = None,
        either: int | str = 0,
        stock: dict[str, int] = {},  # noqa: B006  # same
        box: tuple[float, float] = (1, 1),
        id: uuid.UUID | None = None,
        anything: Any = None,
        raw: msgspec.Raw = NULL,
    ) -> str:
        return f"{count} {item}"

    @action(convert=True)
    async def find(
        self,
        ctx: Context,
        count: Annotated[int, Meta(ge=0, lt=10)] | None = None,
        price: float | None = None,
        gift: bool | None = None,
        since: datetime | None = None,
        tags: list[int] | None = None,
        days: list[datetime] | None = None,
        address: Address | None = None,
        stock: dict[str, int] | None = None,
        box: tuple[float, bool] | None = None,
        either: bool | list[int] | None = None,
        note: str | None = None,
    ) -> Any:
        given = {name: value for name, value in locals().items() if name not in ("self", "ctx") and value is not None}
        return json.loads(bytes(JSONCodec().encode_value(given)))

    @action(visibility="protected")
    async def audit(self, ctx: Context) -> None: ...

    @event("order.placed", group="mail")
    async def on_order(self, ctx: Context) -> None:
        self.orders.append(ctx.params)


# The verdict that both sides must give on the same params, with `item` added.
ALIKE: list[tuple[dict[str, Any], bool]] = [
    ({}, True),
    ({"item": "x"}, False),
    ({"item": "too long"}, False),
    ({"item": "UPPER"}, False),
    ({"item": 5}, False),
    ({"item": None}, False),
    ({"count": 9}, True),
    ({"count": 10}, False),
    ({"count": 0}, False),
    ({"count": 1.5}, False),
    ({"count": "1"}, False),
    ({"count": True}, False),
    ({"count": None, "gift": None, "color": None, "tags": None, "stock": None, "box": None}, True),
    ({"price": 0.01}, True),
    ({"price": 3}, True),
    ({"price": 0}, False),
    ({"color": "green"}, True),
    ({"color": "blue"}, False),
    ({"gift": True}, True),
    ({"gift": "true"}, False),
    ({"note": None}, True),
    ({"note": "please"}, True),
    ({"note": 1}, False),
    ({"tags": ["a", "b"]}, True),
    ({"tags": ["a", 1]}, False),
    ({"tags": ["a", "b", "c"]}, False),
    ({"tags": "a"}, False),
    ({"address": None}, True),
    ({"address": {"street": "Main"}}, True),
    ({"address": {"street": "Main", "number": 7, "more": 1}}, True),
    ({"address": {"number": 7}}, False),
    ({"address": {"street": "Main", "number": "7"}}, False),
    ({"address": "Main"}, False),
    ({"either": 1}, True),
    ({"either": "one"}, True),
    ({"either": [1]}, False),
    ({"stock": {"a": 1}}, True),
    ({"stock": {"a": "1"}}, False),
    ({"stock": [1]}, False),
    ({"box": [1, 2.5]}, True),
    ({"box": [1]}, False),
    ({"box": [1, "2"]}, False),
    ({"id": "6d1f0f4c-6d6e-4c5e-9a53-1f2f3c4d5e6f"}, True),
    ({"id": "no uuid"}, False),
    ({"anything": {"at": ["all"]}, "raw": [1, {"a": None}]}, True),
    ({"unknown": 1}, True),
]


# Values that an HTTP request may contain, and more, for every parameter of `find`.
TEXTS: list[Any] = [
    *("", "0", "1", "10", " 5 ", "+5", "5.", "1e0", "0x7", "0b1", "1_0", "1.5", "ten", "nan", "Infinity", "-1", "null"),
    *("true", "false", "on", "off", "TRUE", "yes", "1,2", "2024-01-02", "2024-01-02T03:04:05.678Z", "20240102"),
    *("2024-01-02T03:04:05+02:00", "1704164645678", "-5", "-1.5", "8640000000000001", "1704164645678.5"),
    *(0, 1, 2, 1.5, -1, 1704164645678, True, False, [], ["5"], ["5", 6, "x"], [["5"]], ["1", "on"], [1, "yes"], {}),
    *({"street": "Main", "number": "7"}, {"street": "Main", "number": "x"}, {"street": 5}, {"a": "1", "b": True}),
]


@dataclass(frozen=True)
class Nodes:
    js: JsNode
    python: ServiceBroker
    shop: Shop


@pytest.fixture(scope="module", params=VERSIONS)
async def nodes(request: pytest.FixtureRequest, nats_url: str, js_modules: object) -> AsyncIterator[Nodes]:
    shop = Shop()
    namespace = f"tools-{uuid.uuid4().hex[:12]}"
    async with (
        js_node(request.param, nats_url, namespace, "js") as js,
        ServiceBroker("py", namespace=namespace, transporter=nats_url, services=[shop]) as python,
    ):
        await js.wait_for_services("v2.shop")
        yield Nodes(js, python, shop)


async def test_published_parameters_accept_and_refuse_the_same_values_in_js(nodes: Nodes) -> None:
    schema = (await nodes.js.actions())["v2.shop.order"]["action"]["params"]
    all_params = [{"item": "book", **params} for params, _ in ALIKE]
    verdicts = await nodes.js.command("validate", schema=schema, all=all_params)
    for params, verdict, (_, expected) in zip(all_params, verdicts, ALIKE, strict=True):
        assert (verdict is True) == expected, f"JavaScript: {params}: {verdict}"
        try:
            await nodes.python.call("v2.shop.order", params)
            taken = True
        except ValidationError:
            taken = False
        assert taken == expected, f"Python: {params}"


async def test_text_is_converted_as_by_the_js_validator(nodes: Nodes) -> None:
    schema = (await nodes.js.actions())["v2.shop.find"]["action"]["params"]
    count = {"type": "number", "integer": True, "min": 0, "max": 9, "convert": True, "nullable": True, "optional": True}
    assert schema["count"] == count
    all_params = [{name: value} for name in schema for value in TEXTS]
    check = f"const check = broker.validator.validator.compile({json.dumps(schema)});"
    in_js = await nodes.js.run(
        f"{check} return {json.dumps(all_params)}.map(params => [check(params) === true, params])"
    )
    differences = []
    for params, (taken, converted) in zip(all_params, in_js, strict=True):
        if params in ({"since": "1,2"}, {"days": "1,2"}, {"box": []}):  # to JS a date, and a tuple of any length
            continue
        try:
            found = await nodes.python.call("v2.shop.find", params)
        except ValidationError:
            found = None
        if found != (converted if taken else None):
            differences.append((params, found, converted if taken else None))
    assert differences == []


async def test_every_published_schema_compiles_in_js(nodes: Nodes) -> None:
    actions = await nodes.js.run("return broker.registry.getActionList({ withEndpoints: true });")
    here = [row for row in actions if any(endpoint["nodeID"] == "py" for endpoint in row["endpoints"])]
    assert len(here) == 9, "seven of $node, two of shop; a protected one is not registered"
    for row in here:
        await nodes.js.command("validate", schema=row["action"].get("params", {}), all=[{}])


async def test_repl_lists_our_node_services_actions_and_events(nodes: Nodes) -> None:
    listed = await nodes.js.command("repl", line="nodes")
    assert re.search(r"│ py │ 2 │ \S+ │ python │ [\d.]+ │ ONLINE", _plain(listed)), listed
    details = await nodes.js.command("repl", line="nodes -d")
    assert re.search(r"│ shop │ 2 │", _plain(details)), details
    services = await nodes.js.command("repl", line="services -d")
    assert re.search(r"│ shop │ 2 │ OK │ 2 │ 1 │ 1 │", _plain(services)), services
    actions = await nodes.js.command("repl", line="actions -d")
    row = next(line for line in _plain(actions).splitlines() if "v2.shop.order" in line)
    assert "OK" in row
    assert "item" in row
    assert "v2.shop.audit" not in actions
    events = await nodes.js.command("repl", line="events")  # its `-d` fails on any node: its rows differ in length
    assert re.search(r"│ order\.placed │ mail │ OK │", _plain(events)), events


async def test_repl_calls_our_actions_and_shows_their_errors(nodes: Nodes) -> None:
    answer = await nodes.js.command("repl", line="call v2.shop.order --item book --count 3")
    assert "'3 book'" in answer
    answer = await nodes.js.command("repl", line="call v2.shop.order --item book --count 30")
    assert "expected `int` <= 9" in answer
    answer = await nodes.js.command("repl", line="call '$node.health' --$local")
    assert "hostname" in answer


async def test_repl_emits_and_shows_its_own_node(nodes: Nodes) -> None:
    await nodes.js.command("repl", line="emit order.placed --id 5")
    await nodes.js.command("repl", line="broadcast order.placed --id 6")
    await eventually(lambda: nodes.shop.orders == [{"id": 5}, {"id": 6}], "both events")
    assert "js" in await nodes.js.command("repl", line="info")


async def test_js_reads_our_node_service_as_its_own(nodes: Nodes) -> None:
    for name in ("list", "services", "actions", "events", "health"):
        ours = await nodes.js.call(f"$node.{name}", {}, nodeID="py")
        theirs = await nodes.python.call(f"$node.{name}", {}, node_id="js")
        assert _shape(ours) == _shape(theirs), name
    options = await nodes.js.call("$node.options", nodeID="py")
    theirs = await nodes.python.call("$node.options", node_id="js")
    same = {"namespace", "nodeID", "transporter", "requestTimeout", "maxCallLevel", "heartbeatInterval", "registry"}
    assert same <= options.keys() & theirs.keys()
    assert options["namespace"] == theirs["namespace"]
    with pytest.raises(JsError) as caught:
        await nodes.js.call("$node.metrics", nodeID="py")
    assert (caught.value.code, caught.value.type) == (400, "METRICS_DISABLED")


async def test_c51_node_service_calls_stay_on_the_calling_node(nodes: Nodes) -> None:
    assert [row["id"] for row in await nodes.js.call("$node.list") if row["local"]] == ["js"]
    assert [row["id"] for row in await nodes.python.call("$node.list") if row["local"]] == ["py"]


def _plain(text: str) -> str:
    """Tables drawn with the same lines, without the padding of their cells."""
    lines = re.sub(r"[│┃║|]", "│", text).splitlines()
    return "\n".join(" ".join(line.split()) for line in lines)


def _shape(value: Any) -> Any:
    """The keys that every row has, or those of an object."""
    if isinstance(value, list):
        return set.intersection(*(set(row) for row in value))
    return {key: _shape(inner) if isinstance(inner, dict) and key != "client" else None for key, inner in value.items()}
