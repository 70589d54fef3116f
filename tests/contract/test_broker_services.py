"""The parts of services: own actions, visibility, mixins, dependencies, names (protocol §9.4, §9.5)."""

from collections.abc import Mapping
from typing import Any

import anyio
import msgspec
import pytest

from broker import (
    Context,
    MoleculerError,
    RequestTimeoutError,
    Service,
    ServiceNotFoundError,
    ValidationError,
    action,
)
from tests.support.cluster import Cluster
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio


class Clock(Service):
    """A mixin that holds a resource while the service runs."""

    running = False

    async def started(self) -> None:
        self.running = True

    async def stopped(self) -> None:
        self.running = False


class Vault(Clock):
    name = "vault"
    version = 2

    def __init__(self) -> None:
        self.was_running_at_start = False

    async def started(self) -> None:
        await super().started()
        self.was_running_at_start = self.running

    @action(visibility="private")
    async def secret(self, ctx: Context, number: int = 1) -> dict[str, Any]:
        return {"number": number, "level": ctx.level, "caller": ctx.caller, "meta": ctx.meta, "request": ctx.request_id}

    @action(visibility="protected")
    async def guarded(self, ctx: Context) -> str:
        return "guarded"

    @action(visibility="private", timeout=0.05)
    async def slow(self, ctx: Context) -> None:
        await anyio.sleep_forever()

    @action(name="list-all")
    async def list_all(self, ctx: Context) -> str:
        return ctx.node_id

    @action
    async def ask(self, ctx: Context) -> Any:
        name, params = ctx.params["name"], ctx.params.get("params", {})
        result = await self.actions[name](params, parent=ctx)
        return {"result": result, "request": ctx.request_id}


async def test_a_private_action_is_called_within_its_service_as_part_of_the_request(cluster: Cluster) -> None:
    _, caller = await cluster.start(("one", [Vault()]), ("two", []))
    answer = await caller.call("v2.vault.ask", {"name": "secret", "params": {"number": 5}}, meta={"user": 7})
    expected = {"number": 5, "level": 2, "caller": "v2.vault", "meta": {"user": 7}, "request": answer["request"]}
    assert answer["result"] == expected


async def test_c42_a_private_action_cannot_be_called_from_other_nodes(cluster: Cluster) -> None:
    one, two = await cluster.start(("one", [Vault()]), ("two", []))
    for broker in (one, two):
        with pytest.raises(ServiceNotFoundError):
            await broker.call("v2.vault.secret")
    peer = await cluster.raw_peer("peer", "RES", "INFO")
    answer = await peer.ask("one", "v2.vault.secret")
    assert answer["error"]["name"] == "ServiceNotFoundError"


async def test_c18_a_protected_action_is_announced_and_called_on_its_node_only(cluster: Cluster) -> None:
    one, two = await cluster.start(("one", [Vault()]), ("two", []))
    assert await one.call("v2.vault.guarded") == "guarded"
    with pytest.raises(ServiceNotFoundError):
        await two.call("v2.vault.guarded")
    [service] = [s for s in two.registry.nodes["one"].services if s["fullName"] == "v2.vault"]
    assert service["actions"]["v2.vault.guarded"]["visibility"] == "protected"
    assert "v2.vault.secret" not in service["actions"]


async def test_own_actions_run_with_hooks_middlewares_and_validation(cluster: Cluster) -> None:
    vault = Vault()
    await cluster.start(("one", [vault]))
    with pytest.raises(ValidationError):
        await vault.actions.secret({"number": "five"})
    with pytest.raises(RequestTimeoutError):
        await vault.actions.slow()


async def test_own_actions_never_run_on_another_node_of_the_service(cluster: Cluster) -> None:
    vault = Vault()
    await cluster.start(("one", [vault]), ("two", [Vault()]), prefer_local=False)
    assert {await vault.actions.list_all() for _ in range(4)} == {"one"}


async def test_own_actions_are_found_by_both_names_and_other_actions_are_not(cluster: Cluster) -> None:
    vault = Vault()
    await cluster.start(("one", [vault]))
    assert await vault.actions["list-all"]() == await vault.actions.list_all() == "one"
    with pytest.raises(ServiceNotFoundError) as caught:
        await vault.actions.unknown()
    assert caught.value.data == {"action": "v2.vault.unknown", "nodeID": "one"}


async def test_lifecycle_hooks_call_super(cluster: Cluster) -> None:
    vault = Vault()
    [one] = await cluster.start(("one", [vault]))
    assert vault.was_running_at_start
    await one.remove_service(vault)
    assert not vault.running


async def test_a_dependency_can_name_a_version(cluster: Cluster) -> None:
    class Waiting(Service):
        name = "waiting"
        dependencies = ({"name": "vault", "version": 2},)

    one = cluster.make("one", [Waiting()])
    two = cluster.make("two", [Vault()])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.start)
        await eventually(lambda: one._node.transit.ready, "one to be up")
        await anyio.wait_all_tasks_blocked()
        assert not one.registry.has_service("waiting")
        await two.start()
    assert one.registry.has_service("waiting")


async def test_c19_names_without_prefixes_are_called_as_they_are(cluster: Cluster) -> None:
    class Bare(Service):
        name = "bare"
        version = "staging"
        settings: Mapping[str, Any] = {"$noVersionPrefix": True, "$noServiceNamePrefix": True}

        @action(name="direct.call")
        async def direct(self, ctx: Context) -> str:
            return "called"

    _, two = await cluster.start(("one", [Bare()]), ("two", []))
    assert await two.call("direct.call") == "called"
    [service] = [s for s in two.registry.nodes["one"].services if s["name"] == "bare"]
    assert (service["fullName"], service["version"]) == ("bare", "staging")


async def test_c51_an_internal_action_is_called_on_the_local_node(cluster: Cluster) -> None:
    one, two = await cluster.start(("one", []), ("two", []), prefer_local=False)
    for broker in (one, two):
        for _ in range(3):
            rows = await broker.call("$node.list")
            assert [row["id"] for row in rows if row["local"]] == [broker.node_id]
    rows = await one.call("$node.list", node_id="two")
    assert [row["id"] for row in rows if row["local"]] == ["two"]


async def test_a_removed_service_and_its_events_are_gone_on_every_node(cluster: Cluster) -> None:
    one, two = await cluster.start(("one", [Vault()]), ("two", []))
    await one.remove_service("v2.vault")
    await eventually(lambda: not two.registry.has_service("v2.vault"))
    with pytest.raises(MoleculerError) as caught:
        await two.call("v2.vault.list-all")
    assert caught.value.type == "SERVICE_NOT_AVAILABLE"
    actions = {row["name"]: row["count"] for row in await two.call("$node.actions", {"skipInternal": True})}
    assert actions["v2.vault.list-all"] == 0


class Pages(Service):
    name = "pages"

    @action
    async def show(self, ctx: Context, limit: int, document: msgspec.Raw, wide: bool = False) -> list[Any]:
        return [limit, wide, msgspec.json.decode(document)]


@pytest.mark.parametrize("serializer", ["JSON", "JSONExt", "MsgPack", "CBOR"])
async def test_text_from_an_http_request_is_converted_to_numbers_and_booleans(
    cluster: Cluster, serializer: str
) -> None:
    options: dict[str, Any] = {"serializer": serializer, "convert_params": True}
    one = await cluster.start_one("one", [Pages()], **options)
    two = await cluster.start_one("two", **options)
    for broker in (one, two):
        for params in ({"limit": "10", "wide": "on"}, {"limit": 10, "wide": True}):
            found = await broker.call("pages.show", {**params, "document": {"limit": "10", "text": "[[x"}})
            assert found == [10, True, {"limit": "10", "text": "[[x"}]
        with pytest.raises(ValidationError) as caught:
            await broker.call("pages.show", {"limit": "ten", "document": 1})
        assert [item["actual"] for item in caught.value.data] == ["ten"]
