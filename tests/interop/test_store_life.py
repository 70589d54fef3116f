"""Nodes of the service stop, crash, return and are replaced, as their JS callers see it."""

from pathlib import Path

import anyio
import pytest

from tests.support.js_node import JsError, JsNode, js_node
from tests.support.nats_server import NatsServer
from tests.support.processes import DEADLINE_S
from tests.support.shapes import until
from tests.support.store_node import store_process

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("js_modules")]

SERVICE = "environments-store"
on_each_database = pytest.mark.parametrize(
    ("lasting_js", "database_url"),
    [
        ("0.14", "sqlite"),
        ("0.15", "postgresql"),
        pytest.param("0.14", "postgresql", marks=pytest.mark.long),
        pytest.param("0.15", "sqlite", marks=pytest.mark.long),
    ],
    indirect=True,
)
one_version = pytest.mark.parametrize(
    "lasting_js", ["0.15", pytest.param("0.14", marks=pytest.mark.long)], indirect=True
)
"""Where it is the nodes of the service that the test is about."""


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'environments.sqlite'}"
    return str(request.getfixturevalue("postgres_url"))


async def create(js: JsNode, name: str) -> str:
    params = {"environment": {"name": name}}
    return str((await js.call(f"{SERVICE}.create", params, timeout=DEADLINE_S * 1000))["id"])


@on_each_database
async def test_stored_environments_survive_a_restart(resident: JsNode, database_url: str, nats_url: str) -> None:
    async with store_process(database_url, nats_url, resident.namespace, "store") as store:
        await resident.wait_for_services(SERVICE)
        made = await create(resident, "kept")
        assert await store.terminate() == 0
    mark = resident.mark()
    async with store_process(database_url, nats_url, resident.namespace, "store") as store:
        await resident.local_event("$node.connected", after=mark)
        await resident.wait_for_services(SERVICE)
        assert (await resident.call(f"{SERVICE}.get", {"uuid": made}))["environment"]["name"] == "kept"
        await store.line("✅ deletedAt column already exists")


@on_each_database
async def test_acknowledged_writes_survive_a_crash(resident: JsNode, database_url: str, nats_url: str) -> None:
    async with store_process(database_url, nats_url, resident.namespace, "store") as store:
        await resident.wait_for_services(SERVICE)
        made = [await create(resident, f"kept {number}") for number in range(5)]
        await store.kill()
    mark = resident.mark()
    async with store_process(database_url, nats_url, resident.namespace, "store"):
        await resident.local_event("$node.updated", after=mark)
        listed = await resident.call(f"{SERVICE}.list", {"fields": ["id"]}, timeout=DEADLINE_S * 1000)
        assert [record["id"] for record in listed] == made


@one_version
async def test_replacing_nodes_one_by_one_fails_no_call(resident: JsNode, postgres_url: str, nats_url: str) -> None:
    answered: list[str] = []
    finished = anyio.Event()

    async def keep_calling() -> None:
        while not finished.is_set():
            answered.append(await create(resident, f"call {len(answered)}"))

    async def several_more() -> None:
        wanted = len(answered) + 20
        await until(lambda: len(answered) >= wanted)

    async with (
        store_process(postgres_url, nats_url, resident.namespace, "a") as first,
        store_process(postgres_url, nats_url, resident.namespace, "b"),
    ):
        await resident.local_event("$node.connected", lambda payload: payload["node"] == "a")
        await resident.local_event("$node.connected", lambda payload: payload["node"] == "b")
        await resident.wait_for_services(SERVICE)
        async with anyio.create_task_group() as callers:
            for _ in range(4):
                callers.start_soon(keep_calling)
            await several_more()
            assert await first.terminate() == 0
            await several_more()
            finished.set()
        listed = await resident.call(f"{SERVICE}.list", {"fields": ["id"]}, timeout=DEADLINE_S * 1000)
        assert {record["id"] for record in listed} == set(answered)


@one_version
async def test_a_second_node_with_the_id_of_a_running_one_is_refused(
    resident: JsNode, postgres_url: str, nats_url: str
) -> None:
    async with store_process(postgres_url, nats_url, resident.namespace, "store"):
        await resident.wait_for_services(SERVICE)
        for taken in ("store", "js"):
            async with store_process(postgres_url, nats_url, resident.namespace, taken) as second:
                assert await second.wait() == 1
                text = "\n".join(second.stderr)
                assert f"Another node with the id '{taken}' is running" in text
                assert "Traceback" not in text
        await create(resident, "still served")


async def test_c32_the_service_recovers_after_a_nats_outage(
    version: str, nats_server: NatsServer, namespace: str, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'environments.sqlite'}"
    quick = {"heartbeatInterval": 1, "heartbeatTimeout": 3}
    async with (
        js_node(version, nats_server.url, namespace, "js", **quick) as js,
        store_process(url, nats_server.url, namespace, "store") as store,
    ):
        await js.wait_for_services(SERVICE)
        made = await create(js, "before")
        nats_server.kill()
        await store.line("The connection to NATS is lost")
        nats_server.start()
        await store.line("The connection to NATS is back")
        with anyio.fail_after(DEADLINE_S):
            while True:
                try:
                    record = await js.call(f"{SERVICE}.get", {"uuid": made}, timeout=1000)
                    break
                except JsError:  # the client of the JS node may take long to reconnect
                    continue
        assert record["environment"]["name"] == "before"
