"""The service on a node: its actions and events as a caller on another node sees them."""

import json
import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import pytest

from broker import Context, MoleculerClientError, MoleculerError, Service, ServiceBroker, ValidationError, event
from services.environments_store.errors import DatabaseError, DatabaseUnavailableError
from services.environments_store.hash import content_hash
from services.environments_store.service import EnvironmentsStore
from tests.support.ports import free_port
from tests.support.postgres import PostgresServer

pytestmark = pytest.mark.anyio

UUID = "c0ffee00-0000-4000-8000-000000000001"
DEADLINE_S = 30.0


class Listener(Service):
    """Collects what the service tells other nodes."""

    name = "listener"

    def __init__(self) -> None:
        self.changes: list[dict[str, Any]] = []
        self._heard = anyio.Event()

    @event("environments.updated")
    async def on_updated(self, ctx: Context) -> None:
        self.changes.append(ctx.params)
        self._heard.set()

    async def wait_for(self, count: int) -> list[dict[str, Any]]:
        with anyio.fail_after(DEADLINE_S):
            while len(self.changes) < count:
                self._heard = anyio.Event()
                await self._heard.wait()
        return self.changes


@asynccontextmanager
async def cluster(url: str, transporter: str, namespace: str) -> AsyncIterator[tuple[ServiceBroker, Listener]]:
    """A node with the service and a node that calls and listens."""
    listener = Listener()
    async with (
        ServiceBroker(
            "store", namespace=namespace, transporter=transporter, services=[EnvironmentsStore(url)]
        ) as store,
        ServiceBroker("caller", namespace=namespace, transporter=transporter, services=[listener]) as caller,
    ):
        await caller.wait_for_services("environments-store", timeout=DEADLINE_S)
        await store.wait_for_services("listener", timeout=DEADLINE_S)
        yield caller, listener


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'data' / 'environments.sqlite'}"


@pytest.fixture
async def caller(database_url: str, namespace: str) -> AsyncIterator[ServiceBroker]:
    """A node that calls the service on another one."""
    transporter = f"memory://{namespace}"
    async with (
        ServiceBroker("store", transporter=transporter, services=[EnvironmentsStore(database_url)]),
        ServiceBroker("caller", transporter=transporter) as caller,
    ):
        await caller.wait_for_services("environments-store", timeout=DEADLINE_S)
        yield caller


def ask(caller: ServiceBroker, action: str, **params: Any) -> Any:
    return caller.call(f"environments-store.{action}", params, timeout=DEADLINE_S)


async def test_the_guides_six_steps_hold(caller: ServiceBroker) -> None:
    created = await ask(caller, "create", environment={"name": "test data"})
    uuid = created["environment"]["uuid"]
    assert await ask(caller, "remove", uuid=uuid) == {"success": True}
    assert await ask(caller, "list") == []
    assert [record["id"] for record in await ask(caller, "listDeleted")] == [uuid]
    assert await ask(caller, "restore", uuid=uuid) == {"success": True}
    [restored] = await ask(caller, "list")
    assert {**restored, "type": "ADD_CLOUD_ENVIRONMENT"} == {**created, "updatedAt": restored["updatedAt"]}


async def test_every_action_answers_in_the_form_of_the_contract(caller: ServiceBroker) -> None:
    created = await ask(caller, "create", environment={"uuid": UUID, "name": "one"})
    assert created.pop("type") == "ADD_CLOUD_ENVIRONMENT"
    assert await ask(caller, "get", uuid=UUID) == created
    updated = await ask(caller, "update", uuid=UUID, environment={"uuid": UUID, "name": "two"}, ifHash=created["hash"])
    assert updated["environment"] == {"uuid": UUID, "name": "two"}
    assert await ask(caller, "list", limit=5, fields=["id", "hash"]) == [{"id": UUID, "hash": updated["hash"]}]
    assert await ask(caller, "list", after=UUID) == []
    assert await ask(caller, "stats") == {"total": 1, "active": 1, "deleted": 0, "recentlyDeleted": 0}
    assert await ask(caller, "stats", recentDays=1) == await ask(caller, "stats")
    with pytest.raises(MoleculerClientError, match="live"):
        await ask(caller, "permanentDelete", uuid=UUID)
    assert await ask(caller, "permanentDelete", uuid=UUID, force=True) == {"success": True}


async def test_every_number_and_boolean_and_a_list_of_fields_may_come_as_text(caller: ServiceBroker) -> None:
    for number in range(3):
        await ask(caller, "create", environment={"uuid": f"{number}{UUID[1:]}"})
    ids = [record["id"] for record in await ask(caller, "list", fields=["id"])]
    assert await ask(caller, "list", limit="2", fields="id") == [{"id": ids[0]}, {"id": ids[1]}]
    [record] = await ask(caller, "list", limit="1", fields="id, hash", after=ids[1])
    assert record.keys() == {"id", "hash"}
    assert await ask(caller, "permanentDelete", uuid=ids[0], force="true") == {"success": True}
    await ask(caller, "remove", uuid=ids[1])
    assert await ask(caller, "listDeleted", limit="5", fields="id") == [{"id": ids[1]}]
    assert (await ask(caller, "stats", recentDays="1"))["recentlyDeleted"] == 1
    dry = await ask(caller, "purge", olderThanDays="90", dryRun="1", batchSize="10")
    assert (dry["deleted"], dry["remaining"]) == (0, 0)
    lines = await (await ask(caller, "export", deleted="on")).read()
    assert [msgspec.json.decode(line)["id"] for line in lines.splitlines()] == [ids[1]]


async def test_schema_tells_the_state_and_the_steps(caller: ServiceBroker) -> None:
    schema = await ask(caller, "schema")
    assert (schema["state"], schema["dialect"]) == ("ready", "sqlite")
    assert {step["name"]: step["state"] for step in schema["steps"]}["column"] == "done"
    assert "error" not in schema


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("create", {}, "environment"),
    ("create", {"environment": []}, "environment"),
    ("create", {"environment": None}, "environment"),
    ("create", {"environment": {"uuid": 7}}, "environment.uuid"),
    ("get", {}, "uuid"),
    ("get", {"uuid": 7}, "uuid"),
    ("get", {"uuid": ""}, "uuid"),
    ("list", {"limit": 0}, "limit"),
    ("list", {"limit": "five"}, "limit"),
    ("list", {"limit": "0"}, "limit"),
    ("list", {"limit": 2**63}, "limit"),
    ("listDeleted", {"limit": 2**64}, "limit"),
    ("list", {"after": 7}, "after"),
    ("list", {"fields": []}, "fields"),
    ("listDeleted", {"fields": ["no such key"]}, "fields[0]"),
    ("list", {"fields": "id,no such key"}, "fields"),
    ("list", {"fields": ""}, "fields"),
    ("update", {"uuid": UUID, "environment": {}, "ifHash": 7}, "ifHash"),
    ("update", {"uuid": UUID, "environment": {"uuid": "another"}}, "environment.uuid"),
    ("remove", {"uuid": None}, "uuid"),
    ("permanentDelete", {"uuid": UUID, "force": "yes"}, "force"),
    ("stats", {"recentDays": -1}, "recentDays"),
]


async def test_params_that_do_not_fit_are_refused_by_name(caller: ServiceBroker) -> None:
    for action, params, field in REFUSED:
        with pytest.raises(ValidationError) as caught:
            await ask(caller, action, **params)
        assert (caught.value.code, caught.value.type) == (422, "VALIDATION_ERROR")
        assert [(violation["field"], violation["nodeID"], violation["action"]) for violation in caught.value.data] == [
            (field, "caller", f"environments-store.{action}")
        ]


async def test_errors_reach_a_caller_on_another_node_with_their_type_and_data(caller: ServiceBroker) -> None:
    created = await ask(caller, "create", environment={"uuid": UUID})
    expected: list[tuple[str, dict[str, Any], int, str, dict[str, Any]]] = [
        ("create", {"environment": {"uuid": UUID}}, 409, "ENVIRONMENT_EXISTS", {"uuid": UUID}),
        ("get", {"uuid": "unknown"}, 404, "ENVIRONMENT_NOT_FOUND", {"uuid": "unknown"}),
        (
            "update",
            {"uuid": UUID, "environment": {}, "ifHash": "other"},
            409,
            "ENVIRONMENT_CHANGED",
            {"uuid": UUID, "hash": created["hash"]},
        ),
    ]
    for action, params, code, kind, data in expected:
        with pytest.raises(MoleculerClientError) as caught:
            await ask(caller, action, **params)
        error = caught.value
        assert (error.name, error.code, error.type, error.data, error.retryable, error.node_id) == (
            "MoleculerClientError",
            code,
            kind,
            data,
            False,
            "store",
        )


async def test_each_change_is_told_once_and_nothing_else_is(database_url: str, namespace: str, nats_url: str) -> None:
    async with cluster(database_url, nats_url, namespace) as (caller, listener):
        created = await ask(caller, "create", environment={"uuid": UUID})
        updated = await ask(caller, "update", uuid=UUID, environment={"name": "two"})
        await ask(caller, "restore", uuid=UUID)
        for action in ("remove", "remove", "restore", "remove", "permanentDelete"):
            await ask(caller, action, uuid=UUID)
        with pytest.raises(MoleculerClientError):
            await ask(caller, "remove", uuid=UUID)
        await ask(caller, "create", environment={"uuid": "last"})
        changes = await listener.wait_for(7)
    assert [change["type"] for change in changes] == [
        "created",
        "updated",
        "removed",
        "restored",
        "removed",
        "purged",
        "created",
    ]
    assert changes[0] == {
        "type": "created",
        "uuid": UUID,
        "hash": created["hash"],
        "timestamp": created["timestamp"],
    }
    assert {change["hash"] for change in changes[1:6]} == {updated["hash"]}


async def test_a_change_is_told_also_when_its_caller_gave_up(database_url: str, namespace: str) -> None:
    async with cluster(database_url, f"memory://{namespace}", namespace) as (caller, listener):
        with pytest.raises(MoleculerError):
            await caller.call("environments-store.create", {"environment": {"uuid": UUID}}, timeout=0.000001)
        await ask(caller, "create", environment={"uuid": "second"})
        stored = {record["id"] for record in await ask(caller, "list", fields=["id"])}
        changes = await listener.wait_for(len(stored))
        assert {change["uuid"] for change in changes} == stored


async def test_sync_is_accepted_and_changes_nothing(caller: ServiceBroker) -> None:
    await ask(caller, "create", environment={"uuid": UUID})
    created = await ask(caller, "get", uuid=UUID)
    assert await ask(caller, "forceSync") == {"success": True}
    await caller.broadcast("environments.sync", {"timestamp": 1})
    await caller.emit("environments.sync")
    assert await ask(caller, "list") == [created]


async def test_documents_pass_over_nats_byte_for_byte(
    database_url: str, namespace: str, nats_url: str, tmp_path: Path
) -> None:
    document = b'{ "uuid":"%s", "n":[1.0,1e21,-0], "s":"\\ud800 \\u0000 \xc3\xa9", "a":1, "a":2 }' % UUID.encode()
    async with cluster(database_url, nats_url, namespace) as (caller, _):
        record = await ask(caller, "create", environment=msgspec.Raw(document))
        assert record["hash"] == content_hash(document)
        assert (await ask(caller, "get", uuid=UUID))["environment"] == json.loads(document)
    assert stored_texts(tmp_path) == [document.decode()]


async def test_a_list_larger_than_a_packet_names_the_page_size_that_fits(
    database_url: str, namespace: str, make_nats_server: Callable[..., Any]
) -> None:
    server = make_nats_server(max_payload=8_192)
    async with cluster(database_url, server.url, namespace) as (caller, _):
        for number in range(20):
            await ask(caller, "create", environment={"uuid": f"{number:02}", "filler": "x" * 1_000})
        with pytest.raises(MoleculerError) as caught:
            await ask(caller, "list")
        assert (caught.value.code, caught.value.type) == (413, "PAYLOAD_TOO_LARGE")
        size = caught.value.data["pageSize"]
        assert 1 <= size < 8
        pages = [await ask(caller, "list", limit=size)]
        while pages[-1]:
            pages.append(await ask(caller, "list", limit=size, after=pages[-1][-1]["id"]))
        assert sum(map(len, pages)) == 20
        with pytest.raises(MoleculerError) as caught:
            await ask(caller, "create", environment={"uuid": "large", "filler": "x" * 7_800})
        assert caught.value.code == 413
        assert "import" in caught.value.message
        assert "max_payload" in caught.value.message
        assert len(await ask(caller, "list", fields=["id"])) == 20
        line = msgspec.json.encode({"environment": {"uuid": "large", "filler": "x" * 7_800}})
        await caller.call("environments-store.import", stream=[line], timeout=DEADLINE_S)
        for action, params in (("get", {"uuid": "large"}), ("list", {"after": "19"})):
            with pytest.raises(MoleculerError, match=r"max_payload .* import and export") as caught:
                await ask(caller, action, **params)
            assert caught.value.code == 413


async def test_a_start_waits_for_the_database_with_a_line_for_each_try(
    namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"postgresql://user:secret@127.0.0.1:{free_port()}/none"
    broker = ServiceBroker("store", namespace=namespace, services=[EnvironmentsStore(url, start_timeout_s=1.5)])
    with caplog.at_level(logging.WARNING), pytest.raises(DatabaseUnavailableError, match=r"within 1\.5 s") as caught:
        await broker.start()
    lines = [record.getMessage() for record in caplog.records if "trying again" in record.getMessage()]
    assert lines
    assert all("postgresql://user:***@127.0.0.1" in line and "\n" not in line for line in lines)
    assert "secret" not in caplog.text
    assert "secret" not in str(caught.value)


async def test_a_start_goes_on_when_the_database_comes_up(namespace: str) -> None:
    with PostgresServer() as server:
        server.stop()
        broker = ServiceBroker("store", namespace=namespace, services=[EnvironmentsStore(server.admin_url)])
        with log_lines("trying again") as waited_for:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(broker.start)
                await waited_for()
                await anyio.to_thread.run_sync(server.start)
        await broker.call("environments-store.create", {"environment": {"uuid": UUID}})
        assert await broker.call("environments-store.list", {"fields": ["id"]}) == [{"id": UUID}]
        await broker.stop()


async def test_a_file_that_is_no_database_ends_the_start_with_its_path(tmp_path: Path, namespace: str) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear reader, this is no database. " * 100)
    broker = ServiceBroker("store", namespace=namespace, services=[EnvironmentsStore(f"sqlite:///{path}")])
    with pytest.raises(DatabaseError, match=r"letter\.txt"):
        await broker.start()


async def test_in_degraded_mode_soft_delete_answers_503_and_the_rest_works(
    namespace: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "environments.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute(
            "CREATE TABLE environments (id VARCHAR(255) PRIMARY KEY, environment JSON, environmentUuid VARCHAR(255),"
            " timestamp DECIMAL, createdAt DATETIME NOT NULL, updatedAt DATETIME NOT NULL)"
        )
        connection.execute(
            "INSERT INTO environments VALUES ('U', '{\"uuid\":\"U\"}', 'U', 5,"
            " '2025-05-27 10:00:00.124 +00:00', '2025-05-27 10:00:00.124 +00:00')"
        )
    connection.close()
    store = EnvironmentsStore(f"sqlite:///{path}?mode=ro")
    async with ServiceBroker("store", namespace=namespace, services=[store]) as broker:
        assert [record["id"] for record in await broker.call("environments-store.list")] == ["U"]
        schema = await broker.call("environments-store.schema")
        assert (schema["state"], schema["reason"]) == ("degraded", "read-only")
        for action in ("remove", "restore", "permanentDelete", "listDeleted"):
            with pytest.raises(MoleculerError) as caught:
                await broker.call(f"environments-store.{action}", {"uuid": "U"})
            assert (caught.value.code, caught.value.type) == (503, "SOFT_DELETE_UNAVAILABLE")
            assert caught.value.retryable
        with pytest.raises(MoleculerError) as caught:
            await broker.call("environments-store.create", {"environment": {"uuid": "V"}})
        assert (caught.value.code, caught.value.type) == (503, "DATABASE_READ_ONLY")
    assert "❌ Failed to add deletedAt column" in [record.getMessage() for record in caplog.records]


@contextmanager
def log_lines(text: str) -> Iterator[Callable[[], Awaitable[None]]]:
    """A function that returns when a log line holds the text."""
    found = anyio.Event()

    class Finder(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if text in record.getMessage():
                found.set()

    async def wait() -> None:
        with anyio.fail_after(DEADLINE_S):
            await found.wait()

    finder = Finder()
    logging.getLogger().addHandler(finder)
    try:
        yield wait
    finally:
        logging.getLogger().removeHandler(finder)


def stored_texts(folder: Path) -> list[str]:
    connection = sqlite3.connect(folder / "data" / "environments.sqlite")
    try:
        return [row[0] for row in connection.execute("SELECT environment FROM environments")]
    finally:
        connection.close()
