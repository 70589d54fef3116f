"""The service, run by its command, called by plain JS nodes of both versions over NATS, on both databases."""

import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import anyio
import pytest

from tests.support.js_node import JsError, JsNode, js_node
from tests.support.postgres import PostgresDatabase, PostgresServer
from tests.support.processes import Process
from tests.support.shapes import make_sqlite, postgres_sql
from tests.support.store_node import store_process

pytestmark = pytest.mark.anyio

SETUPS = ["0.14 sqlite", "0.15 postgresql"]
SETUPS_LONG = [pytest.param(setup, marks=pytest.mark.long) for setup in ("0.14 postgresql", "0.15 sqlite")]
OLD = "c0ffee00-0000-4000-8000-000000000001"  # one of the rows that production has before the migration
RECORD = {"id", "environmentUuid", "environment", "timestamp", "hash", "createdAt", "updatedAt", "deletedAt"}


@dataclass(frozen=True)
class Deployment:
    js: JsNode
    store: Process
    dialect: str

    async def call(self, action: str, params: dict[str, Any] | None = None, **options: Any) -> Any:
        return await self.js.call(f"environments-store.{action}", params or {}, timeout=60_000, **options)

    async def fails(self, action: str, params: dict[str, Any]) -> JsError:
        with pytest.raises(JsError) as caught:
            await self.call(action, params)
        return caught.value

    async def ids(self, action: str = "list") -> set[str]:
        return {record["id"] for record in await self.call(action, {"fields": ["id"]})}


@pytest.fixture(scope="module", params=[*SETUPS, *SETUPS_LONG])
async def deployment(
    request: pytest.FixtureRequest,
    nats_url: str,
    js_modules: object,
    postgres_server: PostgresServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Deployment]:
    """A JS node, and a node of the service on a production table from before `deletedAt`."""
    version, dialect = request.param.split()
    namespace = f"store-{uuid.uuid4().hex[:12]}"
    async with AsyncExitStack() as stack:
        if dialect == "sqlite":
            path = tmp_path_factory.mktemp("store") / "environments.sqlite"
            make_sqlite("s_b1", path)
            url = f"sqlite:///{path}"
        else:
            database = PostgresDatabase(postgres_server)
            stack.callback(database.drop)
            database.run_sql(postgres_sql("p_ab"))
            url = database.url
        js = await stack.enter_async_context(js_node(version, nats_url, namespace, "js"))
        await js.create_service("recorder", patterns=["environments.*"])
        store = await stack.enter_async_context(store_process(url, nats_url, namespace, "store"))
        await js.wait_for_services("environments-store")
        yield Deployment(js, store, dialect)


async def test_the_table_was_migrated_and_keeps_its_rows(deployment: Deployment) -> None:
    log = "\n".join(line.text for line in deployment.store.lines)
    assert "🔄 Adding deletedAt column to environments table" in log
    assert "✅ deletedAt column added successfully" in log
    schema = await deployment.call("schema")
    assert (schema["state"], schema["dialect"]) == ("ready", deployment.dialect)
    old = await deployment.call("get", {"uuid": OLD})
    assert (old["environment"]["name"], old["timestamp"], old["deletedAt"]) == ("Env 1 é", 1748340000124, None)


async def test_the_six_steps_of_the_guide(deployment: Deployment) -> None:
    env = await deployment.call("create", {"environment": {"name": "Test", "port": 3001}})
    known = {"uuid": env["environment"]["uuid"]}
    assert await deployment.call("remove", known) == {"success": True}
    assert known["uuid"] not in {one["environment"]["uuid"] for one in await deployment.call("list")}
    assert known["uuid"] in {one["environment"]["uuid"] for one in await deployment.call("listDeleted")}
    assert await deployment.call("restore", known) == {"success": True}
    assert known["uuid"] in {one["environment"]["uuid"] for one in await deployment.call("list")}


async def test_a_record_has_the_promised_fields(deployment: Deployment) -> None:
    document = {"name": "é😀", "routes": [{"a": None, "b": [1, 2.5, True]}], "port": 3001}
    record = await deployment.call("create", {"environment": document})
    assert record.pop("type") == "ADD_CLOUD_ENVIRONMENT"
    assert set(record) == RECORD
    assert record["id"] == record["environmentUuid"] == record["environment"]["uuid"]
    assert {**record["environment"], "uuid": None} == {**document, "uuid": None}
    assert isinstance(record["timestamp"], int)
    assert (len(record["hash"]), record["deletedAt"]) == (40, None)
    assert record["createdAt"].endswith("Z")
    assert await deployment.call("get", {"uuid": record["id"]}) == record


async def test_update_replaces_the_document_and_guards_against_lost_changes(deployment: Deployment) -> None:
    first = await deployment.call("create", {"environment": {"name": "one"}})
    known = {"uuid": first["id"]}
    second = await deployment.call("update", {**known, "environment": {"name": "two"}, "ifHash": first["hash"]})
    assert (second["environment"]["name"], second["createdAt"]) == ("two", first["createdAt"])
    assert second["hash"] != first["hash"]
    error = await deployment.fails("update", {**known, "environment": {"name": "three"}, "ifHash": first["hash"]})
    assert (error.name, error.code, error.type) == ("MoleculerClientError", 409, "ENVIRONMENT_CHANGED")
    assert error.data["hash"] == second["hash"]
    assert await deployment.call("get", known) == second


async def test_each_failure_has_its_own_error(deployment: Deployment) -> None:
    record = await deployment.call("create", {"environment": {"name": "taken"}})
    document, known = record["environment"], {"uuid": record["id"]}
    assert (await deployment.fails("create", {"environment": document})).type == "ENVIRONMENT_EXISTS"
    assert (await deployment.fails("permanentDelete", known)).type == "ENVIRONMENT_NOT_DELETED"
    await deployment.call("remove", known)
    assert (await deployment.fails("create", {"environment": document})).type == "ENVIRONMENT_DELETED"
    for action in ("get", "update", "remove", "restore", "permanentDelete"):
        params = {"uuid": "no-such-environment", **({"environment": {}} if action == "update" else {})}
        error = await deployment.fails(action, params)
        assert (error.code, error.type, error.retryable) == (404, "ENVIRONMENT_NOT_FOUND", False), action
        assert "no-such-environment" in error.message


@pytest.mark.parametrize(
    ("action", "params", "field"),
    [
        ("create", {}, "environment"),
        ("create", {"environment": "text"}, "environment"),
        ("create", {"environment": [1]}, "environment"),
        ("create", {"environment": None}, "environment"),
        ("create", {"environment": {"uuid": 5}}, "environment.uuid"),
        ("get", {}, "uuid"),
        ("get", {"uuid": 5}, "uuid"),
        ("list", {"limit": 0}, "limit"),
        ("list", {"limit": "ten"}, "limit"),
        ("list", {"fields": ["nonsense"]}, "fields[0]"),
        ("update", {"uuid": OLD}, "environment"),
        ("update", {"uuid": OLD, "environment": {"uuid": "another"}}, "environment.uuid"),
        ("permanentDelete", {"uuid": OLD, "force": "yes"}, "force"),
        ("stats", {"recentDays": -1}, "recentDays"),
    ],
)
async def test_invalid_params_are_refused_by_name(
    deployment: Deployment, action: str, params: dict[str, Any], field: str
) -> None:
    error = await deployment.fails(action, params)
    assert (error.name, error.code, error.type) == ("ValidationError", 422, "VALIDATION_ERROR")
    assert field in [item["field"] for item in error.data]


async def test_removing_and_restoring_are_idempotent(deployment: Deployment) -> None:
    record = await deployment.call("create", {"environment": {"name": "twice"}})
    known = {"uuid": record["id"]}
    await deployment.call("remove", known)
    deleted = await _deleted(deployment, record["id"])
    assert await deployment.call("remove", known) == {"success": True}
    assert (await _deleted(deployment, record["id"]))["deletedAt"] == deleted["deletedAt"]
    assert await deployment.call("restore", known) == {"success": True}
    assert await deployment.call("restore", known) == {"success": True}
    assert (await deployment.call("get", known))["deletedAt"] is None


async def test_a_permanently_deleted_environment_is_gone(deployment: Deployment) -> None:
    for force in (False, True):
        record = await deployment.call("create", {"environment": {"name": "to be gone"}})
        known = {"uuid": record["id"]}
        if not force:
            await deployment.call("remove", known)
        assert await deployment.call("permanentDelete", {**known, "force": force}) == {"success": True}
        assert record["id"] not in await deployment.ids() | await deployment.ids("listDeleted")
        assert (await deployment.fails("restore", known)).type == "ENVIRONMENT_NOT_FOUND"


async def test_stats_count_what_the_lists_show(deployment: Deployment) -> None:
    record = await deployment.call("create", {"environment": {"name": "counted"}})
    await deployment.call("remove", {"uuid": record["id"]})
    stats = await deployment.call("stats")
    active, deleted = await deployment.ids(), await deployment.ids("listDeleted")
    assert (stats["active"], stats["deleted"]) == (len(active), len(deleted))
    assert stats["total"] == len(active) + len(deleted)
    assert 1 <= stats["recentlyDeleted"] <= stats["deleted"]


async def test_every_change_is_broadcast_to_every_node(deployment: Deployment) -> None:
    mark = deployment.js.mark()
    record = await deployment.call("create", {"environment": {"name": "changed"}})
    known = {"uuid": record["id"]}
    await deployment.call("update", {**known, "environment": {"name": "changed again"}})
    await deployment.call("remove", known)
    await deployment.call("restore", known)
    await deployment.call("permanentDelete", {**known, "force": True})
    for kind in ("created", "updated", "removed", "restored", "purged"):

        def is_it(payload: dict[str, Any], kind: str = kind) -> bool:
            return bool(payload["params"]["type"] == kind)

        event = await deployment.js.recorded("environments.updated", is_it, after=mark)
        assert event["params"]["uuid"] == record["id"]
        assert set(event["params"]) == {"type", "uuid", "hash", "timestamp"}


async def test_a_list_is_read_page_by_page(deployment: Deployment) -> None:
    for number in range(5):
        await deployment.call("create", {"environment": {"name": f"page {number}"}})
    whole = await deployment.call("list", {"fields": ["id", "createdAt"]})
    pages: list[dict[str, Any]] = []
    while page := await deployment.call(
        "list", {"limit": "2", "fields": "id,createdAt", **({"after": pages[-1]["id"]} if pages else {})}
    ):
        assert len(page) <= 2
        pages += page
    assert pages == whole
    assert whole == sorted(whole, key=lambda record: (record["createdAt"], record["id"]))


async def test_a_list_above_the_size_limit_names_the_page_size_that_fits(deployment: Deployment) -> None:
    made = [
        (await deployment.call("create", {"environment": {"name": "large", "body": "x" * 100_000}}))["id"]
        for _ in range(11)
    ]
    error = await deployment.fails("list", {})
    assert (error.code, error.type) == (413, "PAYLOAD_TOO_LARGE")
    page = await deployment.call("list", {"limit": error.data["pageSize"]})
    assert len(page) == error.data["pageSize"] > 0
    for one in made:
        await deployment.call("permanentDelete", {"uuid": one, "force": True})


async def test_many_writes_at_once_are_all_kept(deployment: Deployment) -> None:
    created: list[str] = []

    async def create(number: int) -> None:
        created.append((await deployment.call("create", {"environment": {"name": f"at once {number}"}}))["id"])

    async with anyio.create_task_group() as tasks:
        for number in range(30):
            tasks.start_soon(create, number)
    assert set(created) <= await deployment.ids()
    assert len(set(created)) == 30


async def test_neither_side_has_logged_an_error(deployment: Deployment) -> None:
    # The first DISCOVER of a Python node that knows no peers is in version 5; 0.14 logs that once.
    unexpected = [line for line in deployment.js.logged() if "DISCOVER" not in line]
    assert unexpected == []
    assert [line.text for line in deployment.store.lines if "ERROR" in line.text or "Traceback" in line.text] == []


async def _deleted(deployment: Deployment, wanted: str) -> dict[str, Any]:
    records = await deployment.call("listDeleted")
    return next(record for record in records if record["id"] == wanted)
