"""Concurrent clients of two nodes on one database, whose connections, processes and server die: what every client was
told has one order that explains it, and what the table holds at the end follows from it."""

import contextlib
import math
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import asyncpg
import pytest

from broker import ServiceBroker
from broker.errors import MoleculerRetryableError, ServiceNotAvailableError
from services.environments_store.service import EnvironmentsStore
from tests.support.history import NOT_FOUND, OK, UNKNOWN, Call, History, is_linearizable
from tests.support.migrations import BUDGETS
from tests.support.postgres import PostgresServer
from tests.support.store_node import store_process

pytestmark = pytest.mark.anyio

ACTIONS = {
    "create": 5,
    "get": 3,
    "update": 2,
    "update if hash": 3,
    "remove": 4,
    "restore": 2,
    "permanentDelete": 2,
    "permanentDelete by force": 2,
}
CLIENTS, CALLS, UUIDS = 6, 6, 2
TIMEOUT_S = 30.0
KILL_ONE = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'environments-store'"
    " AND datname = current_database() ORDER BY random() LIMIT 1"
)
Harm = Callable[[random.Random, int], Coroutine[Any, Any, None]]


class Node:
    """A node that is ended, and then starts again; calls meanwhile are refused."""

    def __init__(self, name: str, made: Callable[[str], contextlib.AbstractAsyncContextManager[ServiceBroker]]) -> None:
        self.name = name
        self.end = anyio.Event()
        self._made = made
        self._broker: ServiceBroker | None = None

    async def run(self) -> None:
        while True:
            async with self._made(self.name) as self._broker:
                await self.end.wait()
                self._broker, self.end = None, anyio.Event()

    async def ask(self, action: str, params: dict[str, Any]) -> Any:
        if self._broker is None:
            raise ServiceNotAvailableError({"action": action, "nodeID": self.name})
        return await self._broker.call(f"environments-store.{action}", params, timeout=TIMEOUT_S, node_id=self.name)

    async def insist(self, action: str, params: dict[str, Any]) -> Any:
        while True:
            try:
                return await self.ask(action, params)
            except MoleculerRetryableError:
                await anyio.sleep(0.01)


async def play(nodes: list[Node], rounds: int, harm: Harm) -> History:
    """So many rounds, each with uuids of its own; fails with the calls that no order explains."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 # pytest shows it for a failed test
    source = random.Random(seed)
    history = History()

    async def client(uuids: list[str]) -> None:
        for _ in range(CALLS):
            action = source.choices(list(ACTIONS), list(ACTIONS.values()))[0]
            await history.call(source.choice(nodes).ask, action, source.choice(uuids))
            if source.random() < 0.3:
                await anyio.sleep(source.random() * 0.003)

    async with anyio.create_task_group() as group:
        for node in nodes:
            group.start_soon(node.run)
        for node in nodes:
            await node.insist("stats", {})
        for number in range(rounds):
            uuids = [f"{number}-{one}" for one in range(UUIDS)]
            async with anyio.create_task_group() as clients:
                clients.start_soon(harm, source, number)
                for _ in range(CLIENTS):
                    clients.start_soon(client, uuids)
            await history.look(nodes[0].insist, uuids)
        group.cancel_scope.cancel()
    if broken := history.broken():
        pytest.fail(f"No order explains these calls:\n{broken}")
    return history


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
async def test_every_answer_of_two_nodes_follows_from_one_order_of_the_calls(
    dialect: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'environments.sqlite'}"
    if dialect == "postgresql":
        url = request.getfixturevalue("postgres_url")

    @contextlib.asynccontextmanager
    async def node(name: str) -> AsyncIterator[ServiceBroker]:
        async with ServiceBroker(name, services=[EnvironmentsStore(url, budgets=BUDGETS)]) as broker:
            yield broker

    nodes = [Node("one", node), Node("two", node)]

    async def harm(source: random.Random, number: int) -> None:
        await anyio.sleep(source.random() * 0.02)
        if number % 20 == 10:
            nodes[1].end.set()
        elif dialect == "postgresql" and number % 2:
            connection = await asyncpg.connect(url)
            await connection.execute(KILL_ONE)
            await connection.close()

    history = await play(nodes, 25, harm)
    answers = {call.answer for calls in history.calls.values() for call in calls}
    assert {OK, NOT_FOUND, "ENVIRONMENT_EXISTS", "ENVIRONMENT_DELETED", "ENVIRONMENT_CHANGED"} <= answers


@pytest.mark.long
@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
async def test_every_answer_follows_from_one_order_while_nodes_and_the_server_are_killed(
    dialect: str, nats_url: str, namespace: str, tmp_path: Path
) -> None:
    with contextlib.ExitStack() as stack:
        url, server = f"sqlite:///{tmp_path / 'environments.sqlite'}", None
        if dialect == "postgresql":
            server = stack.enter_context(PostgresServer(synchronous_commit="on"))
            url = server.admin_url
        async with ServiceBroker("client", namespace=namespace, transporter=nats_url) as client:

            @contextlib.asynccontextmanager
            async def node(name: str) -> AsyncIterator[ServiceBroker]:
                async with store_process(url, nats_url, namespace, name) as process:
                    yield client
                    await process.kill()

            nodes = [Node("one", node), Node("two", node)]

            async def harm(source: random.Random, number: int) -> None:
                await anyio.sleep(source.random() * 0.05)
                if number % 25 == 10:
                    nodes[number // 25 % 2].end.set()
                elif server is not None and number % 50 == 20:
                    await anyio.to_thread.run_sync(server.kill)
                    await anyio.to_thread.run_sync(server.start)

            await play(nodes, 600, harm)


def told(action: str, called: float, answered: float, answer: str = OK, found: int = 0, document: int = 0) -> Call:
    return Call(action, document, 0, called, answered, answer, found)


MADE = told("create", 1, 2, document=7)
LOST = told("update", 3, math.inf, UNKNOWN, document=8)
HISTORIES = {
    "a remove of what nothing made, beside its create": (
        False,
        [told("create", 1, 4, document=7), told("remove", 2, 3), told("look", 5, 6, found=7)],
    ),
    "the same, found afterwards in the trash": (
        True,
        [told("create", 1, 4, document=7), told("remove", 2, 3), told("look", 5, 6, found=-7)],
    ),
    "a forced delete that calls a row live": (
        False,
        [MADE, told("permanentDelete by force", 3, 4, "ENVIRONMENT_NOT_FOUND")],
    ),
    "a read of what was written later": (False, [told("get", 1, 2, found=7), told("create", 3, 4, document=7)]),
    "a read of what is being written": (True, [told("get", 1, 4, found=7), told("create", 2, 3, document=7)]),
    "a lost write that is seen": (
        True,
        [
            MADE,
            told("update", 3, math.inf, UNKNOWN, document=8),
            told("get", 4, 5, found=7),
            told("get", 6, 7, found=8),
        ],
    ),
    "a lost write that is seen and then is not": (
        False,
        [
            MADE,
            told("update", 3, math.inf, UNKNOWN, document=8),
            told("get", 4, 5, found=8),
            told("get", 6, 7, found=7),
        ],
    ),
    "two deletes of one row": (
        False,
        [MADE, told("permanentDelete by force", 3, 5), told("permanentDelete by force", 4, 6)],
    ),
    "a write that was answered and is gone": (False, [MADE, told("look", 3, 4, found=0)]),
}


@pytest.mark.parametrize(("right", "calls"), HISTORIES.values(), ids=HISTORIES)
def test_the_search_tells_histories_that_can_be_from_those_that_cannot(right: bool, calls: list[Call]) -> None:
    assert is_linearizable(calls) is right
