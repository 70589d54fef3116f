"""Scenario 37: what each operation does to an environment in each state, and which event it sends, exactly once."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from broker import Context, MoleculerError, Service, ServiceBroker, event
from services.environments_store.service import EnvironmentsStore
from tests.support.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])]

U = "c0ffee00-0000-4000-8000-000000000001"
SUCCESS = {"success": True}
DOCUMENT = {"uuid": U, "name": "new"}


class Listener(Service):
    """Remembers the news."""

    name = "listener"

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []

    @event("environments.updated")
    async def on_updated(self, ctx: Context) -> None:
        self.heard.append((ctx.params["type"], ctx.params["uuid"]))


class Nodes:
    """Two nodes that serve one database over one bus, and one that calls and listens."""

    def __init__(self, caller: ServiceBroker, listener: Listener) -> None:
        self.caller = caller
        self.listener = listener

    async def ask(self, action: str, node: str = "one", **params: Any) -> Any:
        """The answer, or the type of the error."""
        try:
            return await self.caller.call(f"environments-store.{action}", params, node_id=node)
        except MoleculerError as error:
            return error.type

    async def news(self, expected: int) -> list[tuple[str, str]]:
        """What was told since the last look; a last event of our own comes after all others."""
        await eventually(lambda: len(self.listener.heard) >= expected, f"{expected} events")
        for node in ("one", "two"):
            await self.ask("create", node, environment={"uuid": f"mark-{node}"})
            await self.until_heard("created", f"mark-{node}")
            await self.ask("permanentDelete", node, uuid=f"mark-{node}", force=True)
            await self.until_heard("purged", f"mark-{node}")
        heard = [one for one in self.listener.heard if not one[1].startswith("mark-")]
        self.listener.heard.clear()
        return heard

    async def until_heard(self, kind: str, uuid: str) -> None:
        await eventually(lambda: (kind, uuid) in self.listener.heard, f"{kind} {uuid}")


@asynccontextmanager
async def nodes(dialect: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Nodes]:
    url = f"sqlite:///{tmp_path / 'environments.sqlite'}"
    if dialect == "postgresql":
        url = str(request.getfixturevalue("postgres_url"))
    bus = f"memory://{tmp_path}"
    listener = Listener()
    async with (
        ServiceBroker("caller", transporter=bus, services=[listener]) as caller,
        ServiceBroker("one", transporter=bus, services=[EnvironmentsStore(url)]) as one,
        ServiceBroker("two", transporter=bus, services=[EnvironmentsStore(url)]) as two,
    ):
        for broker in (one, two):  # an event goes to those who are known to listen
            await broker.wait_for_services("listener", timeout=30)
        for node in ("one", "two"):
            with anyio.fail_after(30):
                while not any(
                    endpoint.node_id == node
                    for endpoint in getattr(caller.registry.actions.get("environments-store.get"), "members", ())
                ):
                    await caller.registry_changed()
        yield Nodes(caller, listener)


# Operation, state before, answer (a function of it), events, state after.
Cell = tuple[str, dict[str, Any], str, Any, list[str], str]
CELLS: list[Cell] = [
    ("remove", {"uuid": U}, "live", SUCCESS, ["removed"], "deleted"),
    ("remove", {"uuid": U}, "deleted", SUCCESS, [], "deleted"),
    ("remove", {"uuid": U}, "unknown", "ENVIRONMENT_NOT_FOUND", [], "unknown"),
    ("restore", {"uuid": U}, "deleted", SUCCESS, ["restored"], "live"),
    ("restore", {"uuid": U}, "live", SUCCESS, [], "live"),
    ("restore", {"uuid": U}, "unknown", "ENVIRONMENT_NOT_FOUND", [], "unknown"),
    ("create", {"environment": DOCUMENT}, "live", "ENVIRONMENT_EXISTS", [], "live"),
    ("create", {"environment": DOCUMENT}, "deleted", "ENVIRONMENT_DELETED", [], "deleted"),
    ("create", {"environment": DOCUMENT}, "unknown", "the record", ["created"], "live"),
    ("update", {"uuid": U, "environment": DOCUMENT}, "live", "the record", ["updated"], "live"),
    ("update", {"uuid": U, "environment": DOCUMENT}, "deleted", "ENVIRONMENT_NOT_FOUND", [], "deleted"),
    ("update", {"uuid": U, "environment": DOCUMENT}, "unknown", "ENVIRONMENT_NOT_FOUND", [], "unknown"),
    ("get", {"uuid": U}, "live", "the record", [], "live"),
    ("get", {"uuid": U}, "deleted", "ENVIRONMENT_NOT_FOUND", [], "deleted"),
    ("get", {"uuid": U}, "unknown", "ENVIRONMENT_NOT_FOUND", [], "unknown"),
    ("permanentDelete", {"uuid": U}, "deleted", SUCCESS, ["purged"], "unknown"),
    ("permanentDelete", {"uuid": U}, "live", "ENVIRONMENT_NOT_DELETED", [], "live"),
    ("permanentDelete", {"uuid": U, "force": True}, "live", SUCCESS, ["purged"], "unknown"),
    ("permanentDelete", {"uuid": U}, "unknown", "ENVIRONMENT_NOT_FOUND", [], "unknown"),
]


async def test_m37_every_operation_in_every_state(dialect: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    async with nodes(dialect, request, tmp_path) as cluster:
        for operation, params, before, answer, events, after in CELLS:
            cell = f"{operation} of one that is {before}"
            await cluster.ask("permanentDelete", uuid=U, force=True)
            if before != "unknown":
                await cluster.ask("create", environment={"uuid": U, "name": "old"})
            if before == "deleted":
                await cluster.ask("remove", uuid=U)
            await cluster.news(0)
            trash = await cluster.ask("listDeleted")
            given = await cluster.ask(operation, **params)
            assert (given if answer != "the record" else given["id"]) == (answer if answer != "the record" else U), cell
            assert await cluster.news(len(events)) == [(event, U) for event in events], cell
            assert await state(cluster) == after, cell
            if before == after == "deleted":
                assert await cluster.ask("listDeleted") == trash, f"{cell}: the first date is kept"


async def state(cluster: Nodes) -> str:
    live = [record["id"] for record in await cluster.ask("list")]
    deleted = [record["id"] for record in await cluster.ask("listDeleted")]
    return "live" if live == [U] else "deleted" if deleted == [U] else "unknown"


async def update(cluster: Nodes, if_hash: str, node: str) -> Any:
    document = {"uuid": U, "by": node, "x": 1}
    return await cluster.ask("update", node, uuid=U, environment=document, ifHash=if_hash)


async def test_m37_of_two_clients_at_once_one_writes_and_one_event_tells(
    dialect: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    async with nodes(dialect, request, tmp_path) as cluster:

        async def at_once(ask: Callable[[str], Awaitable[Any]]) -> list[Any]:
            answers: list[Any] = []

            async def one(node: str) -> None:
                answers.append(await ask(node))

            async with anyio.create_task_group() as tasks:
                for node in ("one", "two"):
                    tasks.start_soon(one, node)
            return answers

        for _ in range(10):
            created = await at_once(lambda node: cluster.ask("create", node, environment={"uuid": U, "by": node}))
            assert sorted(isinstance(answer, dict) for answer in created) == [False, True]
            assert "ENVIRONMENT_EXISTS" in created
            assert await cluster.news(1) == [("created", U)]
            assert await at_once(lambda node: cluster.ask("remove", node, uuid=U)) == [SUCCESS, SUCCESS]
            assert await cluster.news(1) == [("removed", U)]
            assert await at_once(lambda node: cluster.ask("restore", node, uuid=U)) == [SUCCESS, SUCCESS]
            assert await cluster.news(1) == [("restored", U)]
            hash = (await cluster.ask("get", uuid=U))["hash"]
            updated = await at_once(partial(update, cluster, hash))
            assert sorted(isinstance(answer, dict) for answer in updated) == [False, True]
            assert "ENVIRONMENT_CHANGED" in updated
            assert await cluster.news(1) == [("updated", U)]
            gone = await at_once(lambda node: cluster.ask("permanentDelete", node, uuid=U, force=True))
            assert SUCCESS in gone
            assert "ENVIRONMENT_NOT_FOUND" in gone
            assert await cluster.news(1) == [("purged", U)]
