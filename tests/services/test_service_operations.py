"""The operations as actions: over a bus between two nodes, with the events that follow each commit."""

import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    closing,
    contextmanager,
)
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest

from broker import Context, MoleculerError, Service, ServiceBroker, ValidationError, event
from broker.errors import RequestTimeoutError
from services.environments_store.database.connect import open_database
from services.environments_store.database.sqlite import SqliteDatabase
from services.environments_store.defaults import DatabaseSettings, OperationLimits
from services.environments_store.schema.status import SchemaStatus
from services.environments_store.service import EnvironmentsStore
from tests.support.operations import fill
from tests.support.postgres import PostgresDatabase, PostgresServer
from tests.support.shapes import make_sqlite, postgres_sql
from tests.support.store import Bench
from tests.support.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])]

NAME = "environments-store"


class Listener(Service):
    name = "listener"

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []

    @event("environments.updated")
    async def on_updated(self, ctx: Context) -> None:
        self.heard.append(ctx.params)


class Pair:
    """A node that calls and listens, and the database under the other one."""

    def __init__(self, caller: ServiceBroker, listener: Listener, bench: Bench) -> None:
        self.caller = caller
        self.listener = listener
        self.bench = bench

    async def call(self, action: str, params: dict[str, Any] | None = None, **options: Any) -> Any:
        return await self.caller.call(f"{NAME}.{action}", params or {}, **{"timeout": 60, **options})

    async def heard(self, expected: int) -> list[dict[str, Any]]:
        await eventually(lambda: len(self.listener.heard) >= expected, f"{expected} events")
        return self.listener.heard


def pair(
    dialect: str, request: pytest.FixtureRequest, tmp_path: Path, **options: Any
) -> AbstractAsyncContextManager[Pair]:
    url = f"sqlite:///{tmp_path / 'environments.sqlite'}"
    if dialect == "postgresql":
        url = str(request.getfixturevalue("postgres_url"))
    return pair_on(url, tmp_path, **options)


@asynccontextmanager
async def pair_on(url: str, tmp_path: Path, **options: Any) -> AsyncIterator[Pair]:
    listener = Listener()
    bus = f"memory://{tmp_path}"
    database = open_database(url)
    async with (
        ServiceBroker("caller", transporter=bus, services=[listener]) as caller,
        ServiceBroker("store", transporter=bus, services=[EnvironmentsStore(url, **options)]) as store,
    ):
        await store.wait_for_services("listener", timeout=30)
        await caller.wait_for_services(NAME, timeout=30)
        await database.open()
        try:
            status = SchemaStatus(state="ready", dialect=database.dialect, soft_delete=True)
            yield Pair(caller, listener, Bench(database, status))
        finally:
            await database.close()


async def test_purge_tells_each_environment_once_after_its_commit(
    dialect: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    async with pair(dialect, request, tmp_path) as nodes:
        await fill(nodes.bench, 30, deleted_days=91, prefix="old-")
        await fill(nodes.bench, 3, deleted_days=1, prefix="new-")
        forecast = await nodes.call("purge", {"dryRun": True})
        assert (forecast["deleted"], forecast["remaining"], sum(forecast["months"].values())) == (0, 30, 30)
        assert await nodes.call("purge", {"batchSize": 7}) == {"deleted": 30, "remaining": 0}
        heard = await nodes.heard(30)
        assert {(one["type"], one["uuid"]) for one in heard} == {("purged", f"old-{n}") for n in range(1, 31)}
        assert len(heard) == 30
        assert set(heard[0]) == {"type", "uuid", "hash", "timestamp"}
        assert await nodes.call("purge", {"olderThanDays": 1, "force": False}) == {"deleted": 3, "remaining": 0}


async def test_purge_answers_before_its_caller_gives_up_and_another_call_goes_on(
    dialect: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    async with pair(dialect, request, tmp_path, operations=OperationLimits(purge_pause_s=0.1)) as nodes:
        await fill(nodes.bench, 200, deleted_days=91)
        first = await nodes.call("purge", {"batchSize": 10}, timeout=1)
        assert first["deleted"] > 0
        assert first["remaining"] == 200 - first["deleted"] > 0
        rest = await nodes.call("purge")
        assert rest == {"deleted": first["remaining"], "remaining": 0}


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"olderThanDays": 0}, "olderThanDays"),
        ({"olderThanDays": -1, "force": True}, "olderThanDays"),
        ({"batchSize": 0}, "batchSize"),
        ({"olderThanDays": "soon"}, "olderThanDays"),
    ],
)
async def test_purge_refuses_what_does_not_fit(
    dialect: str, request: pytest.FixtureRequest, tmp_path: Path, params: dict[str, Any], field: str
) -> None:
    async with pair(dialect, request, tmp_path) as nodes:
        await nodes.call("create", {"environment": {"uuid": "U"}})
        await nodes.call("remove", {"uuid": "U"})
        with pytest.raises(ValidationError) as caught:
            await nodes.call("purge", params)
        assert caught.value.data[0]["field"] == field
        assert len(await nodes.call("listDeleted")) == 1
        assert await nodes.call("purge", {"olderThanDays": 0, "force": True}) == {"deleted": 1, "remaining": 0}


async def test_export_streams_lines_that_import_takes_back(
    dialect: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    async with pair(dialect, request, tmp_path) as nodes:
        await fill(nodes.bench, 700)
        await fill(nodes.bench, 5, deleted_days=3, prefix="gone-")
        live = await (await nodes.call("export")).read()
        deleted = await (await nodes.call("export", {"deleted": True})).read()
        assert [json.loads(line) for line in live.splitlines()] == await nodes.call("list")
        assert [json.loads(line) for line in deleted.splitlines()] == await nodes.call("listDeleted")
        await nodes.bench.run("DELETE FROM environments")

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(live), 10_007):
                yield live[start : start + 10_007]

        answer = await nodes.call("import", {"onConflict": "fail"}, stream=pieces())
        assert answer == {"created": 700, "skipped": 0, "replaced": 0}
        assert await nodes.call("import", stream=[live]) == {"created": 0, "skipped": 700, "replaced": 0}
        assert await nodes.call("import", stream=[deleted]) == {"created": 5, "skipped": 0, "replaced": 0}
        assert await (await nodes.call("export")).read() == live
        assert await (await nodes.call("export", {"deleted": True})).read() == deleted
        heard = await nodes.heard(705)
        assert len(heard) == 705
        assert [one["type"] for one in heard].count("removed") == 5
        records = {json.loads(line)["id"]: json.loads(line)["hash"] for line in live.splitlines()}
        assert all(records[one["uuid"]] == one["hash"] for one in heard if one["type"] == "created")


async def test_an_empty_export_is_an_empty_stream(dialect: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    async with pair(dialect, request, tmp_path) as nodes:
        assert await (await nodes.call("export")).read() == b""
        assert await nodes.call("import", stream=[]) == {"created": 0, "skipped": 0, "replaced": 0}


async def test_an_import_with_a_bad_line_stores_and_tells_nothing(
    dialect: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    async with pair(dialect, request, tmp_path) as nodes:
        good = b'{"environment":{"uuid":"a"}}\n'
        with pytest.raises(MoleculerError) as caught:
            await nodes.call("import", stream=[good, b"nonsense\n"])
        assert (caught.value.code, caught.value.type) == (422, "IMPORT_REFUSED")
        assert caught.value.data["line"] == 2
        assert await nodes.call("list") == []
        with pytest.raises(ValidationError):
            await nodes.call("import", {"onConflict": "overwrite"}, stream=[good])
        with pytest.raises(ValidationError):
            await nodes.call("import", stream=[good], meta={"onConflict": "overwrite"})
        with pytest.raises(ValidationError) as caught:
            await nodes.call("import")
        assert "stream of lines" in caught.value.data[0]["message"]
        assert nodes.listener.heard == []
        assert (await nodes.call("import", stream=[good], meta={"onConflict": "fail"}))["created"] == 1


async def test_a_stream_that_breaks_off_stores_nothing(
    dialect: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    async with pair(dialect, request, tmp_path) as nodes:

        async def broken() -> AsyncIterator[bytes]:
            yield b'{"environment":{"uuid":"a"}}\n'
            raise MoleculerError("the disk was pulled out")

        with pytest.raises(MoleculerError, match="pulled out"):
            await nodes.call("import", stream=broken())
        assert await nodes.call("list") == []


async def test_a_write_that_waits_ends_with_the_time_of_its_caller_and_stores_nothing(
    dialect: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    calls: dict[str, dict[str, Any]] = {
        "create": {"environment": {"uuid": "new"}},
        "remove": {"uuid": "U"},
        "permanentDelete": {"uuid": "U", "force": True},
        "import": {},
    }
    patient = DatabaseSettings(lock_timeout_s=60, statement_timeout_s=60, command_timeout_s=60)
    async with pair(dialect, request, tmp_path, settings=patient) as nodes:
        await nodes.call("create", {"environment": {"uuid": "U"}})
        async with nodes.bench.database.transaction() as other:
            if dialect == "postgresql":
                await other.execute("LOCK TABLE environments IN SHARE ROW EXCLUSIVE MODE")
            for action, params in calls.items():
                stream = {"stream": one_line()} if action == "import" else {}
                with pytest.raises(RequestTimeoutError):
                    await nodes.call(action, params, timeout=0.2, **stream)
            if dialect == "postgresql":
                waiting = "SELECT count(*) AS n FROM pg_locks WHERE NOT granted AND locktype = 'relation'"
                with anyio.fail_after(30):
                    while (row := await nodes.bench.database.fetch_one(waiting)) is None or row["n"]:
                        pass
        await nodes.call("create", {"environment": {"uuid": "last"}})
        assert [record["id"] for record in await nodes.call("list", {"fields": ["id"]})] == ["U", "last"]


class HeldCommits(NamedTuple):
    """A database whose commits last until they are let go. `read` gives the rows of a query as texts."""

    url: str
    hold: Callable[[], object]
    let_go: Callable[[], object]
    read: Callable[[str], list[list[str]]]


FIRST, OLD, THIRD, FOURTH = (f"c0ffee00-0000-4000-8000-00000000000{number}" for number in range(1, 5))
TRASH = f"""INSERT INTO environments
(id, environment, "environmentUuid", "timestamp", "createdAt", "updatedAt", "deletedAt")
SELECT 'trash', environment, 'trash', "timestamp", "createdAt", "updatedAt", '2099-01-01 00:00:00.000 +00:00'
FROM environments WHERE id = '{OLD}'"""
CALLS: dict[str, dict[str, Any]] = {
    "create": {"environment": {"uuid": "new"}},
    "update": {"uuid": FIRST, "environment": {"uuid": FIRST}},
    "remove": {"uuid": THIRD},
    "restore": {"uuid": "trash"},
    "permanentDelete": {"uuid": FOURTH, "force": True},
    "purge": {},
    "import": {},
}


@contextmanager
def held_by_a_standby() -> Iterator[HeldCommits]:
    """Each commit waits for a standby that is not there, and is done already."""
    with PostgresServer() as server:
        database = PostgresDatabase(server)
        url = database.create_role("guest")
        role = f'"{database.role_name(url)}"'
        database.run_sql(f"{postgres_sql('p_dmig')} {TRASH}; GRANT ALL ON environments TO {role}; ANALYZE environments")
        database.run_sql(f"ALTER ROLE {role} SET synchronous_commit = 'on'")
        server.run_sql("ALTER SYSTEM SET synchronous_standby_names = 'gone'")
        server.restart()
        let_go = "ALTER SYSTEM RESET synchronous_standby_names; SELECT pg_reload_conf()"
        yield HeldCommits(
            url,
            lambda: None,
            lambda: server.run_sql(let_go),
            lambda query: [line.split("|") for line in database.run_sql(query).splitlines()],
        )


@contextmanager
def held_by_a_reader(path: Path) -> Iterator[HeldCommits]:
    """Each commit waits for a reader: without WAL, none may be at work then."""
    make_sqlite("s_d1", path)
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute(TRASH)

        def hold() -> None:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM environments")

        def read(query: str) -> list[list[str]]:
            return [list(map(str, row)) for row in reader.execute(query)]

        yield HeldCommits(f"sqlite:///{path}", hold, lambda: reader.execute("ROLLBACK"), read)


async def test_what_is_committed_after_the_time_of_its_caller_is_told(
    dialect: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if dialect == "sqlite":
        monkeypatch.setattr(SqliteDatabase, "_go_to_wal", stay)
        await check_what_is_told(
            held_by_a_reader(tmp_path / "environments.sqlite"), tmp_path, ["create"], ["permanentDelete"]
        )
    else:
        await check_what_is_told(held_by_a_standby(), tmp_path, list(CALLS))


async def stay(self: SqliteDatabase, writer: object) -> None:
    """As on a file system without shared memory."""


async def check_what_is_told(held: AbstractContextManager[HeldCommits], tmp_path: Path, *together: list[str]) -> None:
    with held as commits:
        async with pair_on(commits.url, tmp_path) as nodes:
            before = state(commits)
            for actions in together:
                commits.hold()
                await time_out(nodes, actions)
                commits.let_go()
                # On a slow machine the deadline may come before the commit of one.
                await eventually(
                    lambda: told(nodes) and told(nodes) == changes(before, state(commits)), "the news of what is stored"
                )
        assert told(nodes) == changes(before, state(commits))


def state(commits: HeldCommits) -> dict[str, tuple[str, str]]:
    """By id: whether it is deleted, and how long its document is."""
    deleted = 'CASE WHEN "deletedAt" IS NULL THEN 0 ELSE 1 END'
    rows = commits.read(f"SELECT id, {deleted}, length(CAST(environment AS TEXT)) FROM environments")
    return {id: (deleted, length) for id, deleted, length in rows}


def changes(before: dict[str, tuple[str, str]], after: dict[str, tuple[str, str]]) -> list[tuple[str, str]]:
    """What has to be told of the difference."""
    found = [("created", id) for id in after.keys() - before.keys()]
    found += [("purged", id) for id in before.keys() - after.keys()]
    for id in before.keys() & after.keys():
        (was_deleted, was_long), (is_deleted, is_long) = before[id], after[id]
        if was_deleted != is_deleted:
            found.append(("removed" if is_deleted == "1" else "restored", id))
        elif was_long != is_long:
            found.append(("updated", id))
    return sorted(found)


def told(nodes: Pair) -> list[tuple[str, str]]:
    return sorted((one["type"], one["uuid"]) for one in nodes.listener.heard)


async def time_out(nodes: Pair, actions: list[str]) -> None:
    """Call, and return when every caller has given up."""

    async def call(action: str) -> None:
        stream = {"stream": one_line()} if action == "import" else {}
        with pytest.raises(RequestTimeoutError):
            await nodes.call(action, CALLS[action], timeout=1.5, **stream)

    async with anyio.create_task_group() as group:
        for action in actions:
            group.start_soon(call, action)


async def one_line() -> AsyncIterator[bytes]:
    yield b'{"environment":{"uuid":"imported"}}\n'


async def test_with_a_retention_old_environments_go_by_themselves_and_are_told(
    dialect: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    limits = OperationLimits(retention_first_s=0.5, retention_every_s=0.05)
    async with pair(dialect, request, tmp_path, operations=limits, retention_days=30) as nodes:
        await fill(nodes.bench, 3, deleted_days=31, prefix="old-")
        await fill(nodes.bench, 3, deleted_days=29, prefix="young-")
        assert {one["uuid"] for one in await nodes.heard(3)} == {"old-1", "old-2", "old-3"}
        assert {one["id"] for one in await nodes.call("listDeleted")} == {"young-1", "young-2", "young-3"}


async def test_without_a_retention_nothing_goes_by_itself(
    dialect: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    limits = OperationLimits(retention_first_s=0.001, retention_every_s=0.001)
    async with pair(dialect, request, tmp_path, operations=limits) as nodes:
        await fill(nodes.bench, 3, deleted_days=10_000)
        for _ in range(20):
            assert len(await nodes.call("listDeleted")) == 3
