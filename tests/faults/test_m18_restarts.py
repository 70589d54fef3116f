"""The server is down, starts, restarts, and loses a connection in the middle of something."""

import contextlib
import itertools
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Literal

import anyio
import anyio.to_thread
import asyncpg
import pytest

from broker import MoleculerError
from services.environments_store.database.postgres_session import PostgresSession
from services.environments_store.defaults import MigrationBudgets
from services.environments_store.errors import DatabaseUnavailableError
from services.environments_store.schema.messages import ADDED, ADDING, EXISTS, REACHABLE
from services.environments_store.schema.migrator import Migrator, migrate_once
from tests.support.migrations import (
    ADVISORY_LOCKS,
    BUDGETS,
    INDEX_STATE,
    MIGRATORS,
    VALID_INDEX,
    migrator,
    old_transaction,
)
from tests.support.postgres import PostgresDatabase, PostgresServer
from tests.support.postgres_proxy import PostgresProxy
from tests.support.processes import DEADLINE_S
from tests.support.served import Serving, ask, serving
from tests.support.shapes import (
    Lines,
    postgres_sql,
    rows_of_postgres,
    until,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def primary() -> Iterator[PostgresServer]:
    """What it has acknowledged outlives its crash, as in production."""
    with PostgresServer(synchronous_commit="on") as server:
        yield server


async def test_m18_no_connection_is_an_error_of_the_service() -> None:
    lines = Lines("no-connection")
    one = migrator("postgresql://nobody:secret@127.0.0.1:1/none", lines)
    with pytest.raises(DatabaseUnavailableError) as caught:
        await one.prepare()
    assert "secret" not in str(caught.value)


async def test_m18_a_server_that_restarts_is_met_again_and_the_work_goes_on(lines: Lines) -> None:
    with PostgresServer() as server:
        server.run_sql(postgres_sql("p_c"))
        one = Migrator(server.admin_url, None, node_id="node-1", logger=lines.logger, budgets=BUDGETS)
        await anyio.to_thread.run_sync(server.stop)
        with pytest.raises(DatabaseUnavailableError):
            await one.prepare()
        await anyio.to_thread.run_sync(server.start)
        await one.prepare()
        async with anyio.create_task_group() as group:
            group.start_soon(one.run)
            await until(lambda: {step.state for step in one.status.steps} == {"done"})
            for stop in (server.stop, server.kill):
                await anyio.to_thread.run_sync(stop)
                await until(lambda: one.status.reason == "unavailable")
                assert one.status.soft_delete
                await anyio.to_thread.run_sync(server.start)
                await until(lambda: one.status.state == "ready")
            group.cancel_scope.cancel()
    assert lines.guide_lines() == [ADDING, ADDED]


async def test_m18_schema_says_at_once_that_the_database_is_away_and_that_it_is_back(primary: PostgresServer) -> None:
    async with serving(primary.admin_url, budgets=MigrationBudgets()) as service:
        await service.until_state("ready", steps=True)
        for _ in range(2):
            await anyio.to_thread.run_sync(primary.stop)
            assert (await service.ask("schema"))["reason"] == "unavailable"
            assert (await service.failure("list")).code == 503
            await anyio.to_thread.run_sync(primary.start)
            assert (await service.ask("schema"))["state"] == "ready"
            assert await service.ask("list") == []
        assert [line for line in service.lines if line == REACHABLE] == [REACHABLE] * 2
        assert sum("The service retries until it answers" in line for line in service.lines) == 2


async def test_m18_a_call_that_fails_makes_the_outage_known(primary: PostgresServer) -> None:
    async with serving(primary.admin_url, budgets=MigrationBudgets()) as service:
        await service.until_state("ready", steps=True)
        await anyio.to_thread.run_sync(primary.stop)
        assert (await service.failure("list")).code == 503
        await service.until_logged("cannot be reached")


async def test_m18_a_server_that_still_starts_is_waited_for(primary: PostgresServer) -> None:
    """It answers every connection with 57P03, as one does that recovers; then it takes them."""
    primary.run_sql(postgres_sql("p_c"))
    primary.stop()
    signal_file = primary.data / "standby.signal"
    signal_file.touch()
    primary.change(hot_standby="off")
    primary.launch()
    await until(lambda: "in recovery" in primary.log() or "standby mode" in primary.log())

    async def start() -> None:
        await until(lambda: "57P03" in primary.log() or "FATAL" in primary.log())
        await anyio.to_thread.run_sync(primary.stop)
        signal_file.unlink()
        await anyio.to_thread.run_sync(primary.start)

    async with anyio.create_task_group() as group:
        group.start_soon(start)
        async with serving(primary.admin_url) as service:
            await service.until_state("ready", steps=True)
            assert sum("cannot be reached, trying again" in line for line in service.lines) > 0
            assert service.guide_lines() == [ADDING, ADDED]


READY = "database system is ready to accept connections"
Fault = Literal["fast restart", "immediate restart", "backend killed"]
FAULTS: tuple[Fault, ...] = ("fast restart", "immediate restart", "backend killed")
ONE_FAULT = [pytest.param(one, marks=() if one == "backend killed" else pytest.mark.long) for one in FAULTS]


def do(fault: Fault, server: PostgresServer) -> None:
    match fault:
        case "fast restart":
            server.restart()
        case "immediate restart":
            server.kill()
            server.start()
        case "backend killed":
            kill_backends(server, MIGRATORS)


def kill_backends(server: PostgresServer, which: str) -> None:
    """The server ends every other connection and recovers, as after a crash; returns when it is back."""
    starts = server.log().count(READY)
    for pid in server.run_sql(f"SELECT pid {which}").split():
        os.kill(int(pid), signal.SIGKILL)
    server.wait_until(lambda: True if server.log().count(READY) > starts else None)


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("fault", FAULTS)
async def test_m18_a_fault_of_the_server_at_any_step_is_resumed_from(
    fault: Fault, every: int, primary: PostgresServer, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run of the migration meets the fault at another of its statements: by default the three faults together at
    every third one, in the long form each at all of them."""
    steps = Steps(lambda: do(fault, primary))
    steps.watch(monkeypatch)
    number = 3 * FAULTS.index(fault) % every + 1
    while True:
        primary.run_sql(f"DROP TABLE IF EXISTS environments, metadata; {postgres_sql('p_c')}")
        before = rows_of_postgres(primary.run_sql)
        lines.messages.clear()
        one = migrator(primary.admin_url, lines)
        steps.begin(number)
        await insist(one.prepare)
        async with anyio.create_task_group() as group:
            group.start_soon(one.run)
            await until(lambda: one.status.state == "ready" and {s.state for s in one.status.steps} == {"done"})  # noqa: B023
            group.cancel_scope.cancel()
        if steps.count < number:
            break
        assert primary.run_sql(INDEX_STATE) == VALID_INDEX
        assert primary.run_sql(ADVISORY_LOCKS) == "0"
        assert rows_of_postgres(primary.run_sql) == before
        assert lines.guide_lines().count(ADDED) + lines.guide_lines().count(EXISTS) == 1
        number += every
    assert number > 15


@pytest.mark.parametrize("fault", ONE_FAULT)
async def test_m18_a_fault_of_the_server_while_it_builds_the_index_is_repaired_without_a_restart(
    fault: Fault, primary: PostgresServer
) -> None:
    primary.run_sql(postgres_sql("p_half"))
    # The old transaction ends with the server, which its connection may tell.
    with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
        async with (
            old_transaction(primary.admin_url, isolation="repeatable_read"),
            serving(primary.admin_url) as service,
        ):
            await until(lambda: "false" in primary.run_sql(INDEX_STATE))
            await anyio.to_thread.run_sync(do, fault, primary)
            await service.until_state("ready", steps=True)
            assert "Dropping the INVALID index" in await service.until_logged("Dropping")
    assert primary.run_sql(INDEX_STATE) == VALID_INDEX
    assert primary.run_sql(ADVISORY_LOCKS) == "0"


@pytest.mark.parametrize("fault", ONE_FAULT)
async def test_m19_a_restart_in_the_middle_of_requests_is_told_truly(fault: Fault, primary: PostgresServer) -> None:
    """Callers that write and read all the time; each gets a right answer or an error that can be tried again."""
    async with serving(primary.admin_url) as service:
        await service.until_state("ready", steps=True)
        callers = [Caller(service, number) for number in range(8)]
        async with anyio.create_task_group() as group:
            for caller in callers:
                group.start_soon(caller.run)
            await until(lambda: min(caller.answers for caller in callers) > 5)
            await anyio.to_thread.run_sync(_meet, fault, primary)
            before = [caller.answers for caller in callers]
            await until(lambda: all(c.answers > b + 5 for c, b in zip(callers, before, strict=True)))
            group.cancel_scope.cancel()
        for caller in callers:
            await caller.check()
            assert caller.lies == []
        assert sum(len(caller.errors) for caller in callers) > 0


def _meet(fault: Fault, server: PostgresServer) -> None:
    if fault == "backend killed":
        kill_backends(server, "FROM pg_stat_activity WHERE application_name = 'environments-store' LIMIT 1")
    else:
        do(fault, server)


class Caller:
    """Creates, reads, removes and restores environments of its own, and remembers what it was told."""

    def __init__(self, service: Serving, number: int) -> None:
        self._service = service
        self._number = number
        self._known: dict[str, bool | None] = {}
        self.answers = 0
        self.errors: list[MoleculerError] = []
        self.lies: list[str] = []

    async def run(self) -> None:
        for round_number in itertools.count():
            uuid = f"{self._number}-{round_number}"
            for action, live in (("create", True), ("remove", False), ("restore", True)):
                await self._write(action, uuid, live)
            await self._read(uuid)

    async def _write(self, action: str, uuid: str, live: bool) -> None:
        before = self._known.get(uuid)
        with anyio.CancelScope(shield=True):  # a call that was cut off here would leave its outcome open
            try:
                await ask(
                    self._service.broker,
                    action,
                    **({"environment": {"uuid": uuid}} if action == "create" else {"uuid": uuid}),
                )
            except MoleculerError as error:
                self._note(action, uuid, error)
                # Not stored, unless it says that nobody knows.
                self._known[uuid] = None if "may or may not" in str(error) else before
                return
        self.answers += 1
        self._known[uuid] = live

    async def _read(self, uuid: str) -> None:
        try:
            found = {record["id"] for record in await self._service.ask("list", fields=["id"])}
        except MoleculerError as error:
            self._note("list", uuid, error)
            return
        self.answers += 1
        if self._known.get(uuid) and uuid not in found:
            self.lies.append(f"{uuid} was stored and is not listed")

    def _note(self, action: str, uuid: str, error: MoleculerError) -> None:
        self.errors.append(error)
        never_made = uuid not in self._known or self._known[uuid] is None
        if not ((error.code, error.retryable) == (503, True) or (error.code == 404 and never_made)):
            self.lies.append(f"{action} {uuid}: {error!r}")

    async def check(self) -> None:
        """What was answered is what is there."""
        live = {record["id"] for record in await self._service.ask("list", fields=["id"])}
        trash = {record["id"] for record in await self._service.ask("listDeleted", fields=["id"])}
        for uuid, state in self._known.items():
            if state is not None and (uuid in live, uuid in trash) != (state, not state):
                self.lies.append(f"{uuid} is not as it was answered")


class Steps:
    """Counts the statements of the migration and does something beside one of them."""

    def __init__(self, fault: Callable[[], None]) -> None:
        self._fault = fault
        self._at = 0
        self.count = 0

    def begin(self, at: int) -> None:
        self._at, self.count = at, 0

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("fetch", "fetch_one", "fetch_value", "run"):
            monkeypatch.setattr(PostgresSession, name, self._counting(getattr(PostgresSession, name)))

    def _counting(self, real: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def counted(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self._at:
                await anyio.to_thread.run_sync(self._fault)
            return await real(*arguments, **options)

        return counted


async def insist(prepare: Callable[[], Awaitable[object]]) -> None:
    """As the service does: the first connection may fail while the server starts."""
    with anyio.fail_after(DEADLINE_S):
        while True:
            try:
                await prepare()
                return
            except DatabaseUnavailableError:
                await anyio.sleep(0.05)


async def test_m20_a_commit_whose_answer_was_lost_is_looked_up(
    postgres_database: PostgresDatabase, lines: Lines
) -> None:
    postgres_database.run_sql(postgres_sql("p_c"))
    async with PostgresProxy(postgres_database.url).running() as proxy:
        proxy.cut_answer = b"ADD COLUMN"
        status = await migrate_once(proxy.url, logger=lines.logger, budgets=BUDGETS)
    assert proxy.cut == 1
    assert status.state == "ready"
    assert lines.guide_lines()[0] == ADDING
    assert len(lines.guide_lines()) == 2
    assert sum("ADD COLUMN IF NOT EXISTS" in line for line in postgres_database.log().splitlines()) == 1


async def test_m20_a_create_whose_answer_was_lost_is_answered_with_what_was_stored(
    postgres_database: PostgresDatabase,
) -> None:
    async with PostgresProxy(postgres_database.url).running() as proxy, serving(proxy.url) as service:
        await service.until_state("ready", steps=True)
        proxy.cut_answer = b"sent once"
        record = await service.ask("create", environment={"uuid": "U", "name": "sent once"})
        assert record.pop("type") == "ADD_CLOUD_ENVIRONMENT"
        assert proxy.cut == 1
        assert await service.ask("list") == [record]
        for action, stored in (("remove", 1), ("restore", 0)):
            proxy.cut_answer = b"\x00\x00\x00\x01U"  # its parameter, with the length before it
            assert await service.ask(action, uuid="U") == {"success": True}
            assert len(await service.ask("listDeleted")) == stored
        assert proxy.cut == 3
