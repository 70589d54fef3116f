"""A write whose connection dies is answered truly: the row is read back first.

Most failures are put between the store and a real database: before a statement runs, or after it was committed. The
last test kills the connection on the server.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal, NoReturn

import anyio
import anyio.to_thread
import pytest

from services.environments_store.database.base import Queries, Row
from services.environments_store.database.statements import is_read
from services.environments_store.defaults import StoreLimits
from services.environments_store.errors import (
    DatabaseUnavailableError,
    EnvironmentNotFoundError,
    OutcomeUnknownError,
)
from services.environments_store.store import Store
from tests.support.postgres import PostgresDatabase
from tests.support.store import Bench, read

pytestmark = pytest.mark.anyio

on_both = pytest.mark.parametrize("bench", ["sqlite", "postgresql"], indirect=True)

SECOND = b'{"uuid":"U","name":"second"}'
DEADLINE_S = 30.0
KILL_WAITING = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND wait_event_type = 'Lock'"
)
LIMITS = StoreLimits(read_back_s=30, read_back_pause_s=0.01)
Then = Callable[[], Awaitable[object]]
IMPATIENT = StoreLimits(read_back_s=0.2, read_back_pause_s=0.01)


class _LostBeforeTheCommit(Exception):
    pass


class Failing:
    """The database; the connection of its next write dies before or after the commit, `then` something happens, and so
    many reads find no connection."""

    def __init__(self, bench: Bench, stored: bool, unreachable: int = 0, then: Then | None = None) -> None:
        self._database = bench.database
        self._stored: bool | None = stored
        self._unreachable = unreachable
        self._then = then

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    async def fetch_one(self, query: str, *arguments: object) -> Row | None:
        if self._stored is None:
            self._unreachable -= 1
            if self._unreachable >= 0:
                raise DatabaseUnavailableError("no connection")
        if self._stored is None or is_read(query):
            return await self._database.fetch_one(query, *arguments)
        if self._stored:
            await self._database.fetch_one(query, *arguments)
        await self._die()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Queries]:
        with suppress(_LostBeforeTheCommit):
            async with self._database.transaction() as connection:
                yield connection
                if self._stored is False:
                    raise _LostBeforeTheCommit
        if self._stored is not None:
            await self._die()

    async def _die(self) -> NoReturn:
        self._stored = None
        if self._then is not None:
            await self._then()
        raise OutcomeUnknownError("the connection died")


async def failing_store(
    bench: Bench,
    stored: bool,
    operation: str,
    unreachable: int = 0,
    limits: StoreLimits = LIMITS,
    then: Then | None = None,
) -> Store:
    if operation != "create":
        await bench.create("U", name="first")
    if operation in ("restore", "permanent_delete"):
        await bench.store.remove("U")
    return bench.store_on(Failing(bench, stored, unreachable, then), limits)


async def write(store: Store, operation: str) -> Any:
    match operation:
        case "create":
            return await store.create(SECOND)
        case "update":
            return await store.update("U", SECOND)
    return await getattr(store, operation)("U")


Operation = Literal["create", "update", "remove", "restore", "permanent_delete"]
WRITES = ["create", "update", "remove", "restore", "permanent_delete"]
every_write = pytest.mark.parametrize(
    ("bench", "operation"),
    # SQLite says how every transaction ended: there is no outcome to look for.
    [(shape, one) for shape in ("sqlite", "postgresql") for one in WRITES if (shape, one) != ("sqlite", WRITES[-1])],
    indirect=["bench"],
)
TYPES = {
    "create": "created",
    "update": "updated",
    "remove": "removed",
    "restore": "restored",
    "permanent_delete": "purged",
}


@every_write
@pytest.mark.parametrize("unreachable", [0, 3])
async def test_a_write_that_was_stored_is_a_success(bench: Bench, operation: Operation, unreachable: int) -> None:
    store = await failing_store(bench, True, operation, unreachable)
    written = await write(store, operation)
    assert (written.change.type, written.change.uuid) == (TYPES[operation], "U")
    if operation in ("create", "update"):
        assert written.record == await bench.store.get("U")


@on_both
@pytest.mark.parametrize("operation", ["update", "remove", "restore", "permanent_delete"])
async def test_a_write_that_was_not_stored_is_a_retryable_error(bench: Bench, operation: Operation) -> None:
    store = await failing_store(bench, False, operation)
    before = [await bench.list(), await bench.list_deleted()]
    with pytest.raises(DatabaseUnavailableError, match="this write is not visible") as caught:
        await write(store, operation)
    assert type(caught.value) is DatabaseUnavailableError
    assert caught.value.retryable
    assert [await bench.list(), await bench.list_deleted()] == before


@on_both
async def test_a_create_that_was_not_stored_is_stored_then(bench: Bench) -> None:
    store = await failing_store(bench, False, "create")
    written = await write(store, "create")
    assert read(written.record)["environment"] == {"uuid": "U", "name": "second"}
    assert written.record == await bench.store.get("U")


@every_write
async def test_while_nobody_can_be_asked_the_outcome_stays_unknown(bench: Bench, operation: Operation) -> None:
    store = await failing_store(bench, True, operation, unreachable=1_000_000, limits=IMPATIENT)
    with pytest.raises(OutcomeUnknownError):
        await write(store, operation)


@on_both
async def test_a_create_that_was_stored_and_removed_meanwhile_is_a_success(bench: Bench) -> None:
    store = bench.store_on(Failing(bench, True, then=lambda: bench.store.remove("U")), LIMITS)
    assert read((await write(store, "create")).record)["deletedAt"] is not None


@on_both
@pytest.mark.parametrize("deleted", [False, True])
async def test_a_create_that_finds_another_document_does_not_claim_to_know(bench: Bench, deleted: bool) -> None:
    await bench.create("U", name="first")
    if deleted:
        await bench.store.remove("U")
    store = bench.store_on(Failing(bench, True), LIMITS)
    with pytest.raises(DatabaseUnavailableError, match="this write is not visible"):
        await write(store, "create")


@on_both
@pytest.mark.parametrize("operation", ["update", "remove", "restore"])
async def test_a_write_to_what_is_gone_meanwhile_does_not_claim_to_know(bench: Bench, operation: str) -> None:
    store = await failing_store(bench, True, operation, then=lambda: bench.store.permanent_delete("U", force=True))
    with pytest.raises(DatabaseUnavailableError, match="this write is not visible"):
        await write(store, operation)


@on_both
async def test_a_permanent_delete_of_what_never_was_is_not_found_though_its_connection_ends(bench: Bench) -> None:
    for stored in (False, True):
        store = bench.store_on(Failing(bench, stored), LIMITS)
        with pytest.raises(EnvironmentNotFoundError):
            await store.permanent_delete("never", force=True)


@pytest.mark.parametrize("bench", ["postgresql"], indirect=True)
@pytest.mark.parametrize("operation", ["create", "update", "remove", "restore", "permanent_delete"])
async def test_a_connection_killed_while_its_write_waits_gives_a_true_answer(
    bench: Bench, postgres_database: PostgresDatabase, operation: Operation
) -> None:
    await failing_store(bench, False, operation)
    before = [await bench.list(), await bench.list_deleted()]
    outcome: list[Any] = []

    async def run() -> None:
        try:
            outcome.append(await write(bench.store, operation))
        except DatabaseUnavailableError as error:
            outcome.append(error)

    async with anyio.create_task_group() as tasks, bench.database.transaction() as other:
        await other.execute("LOCK TABLE environments IN SHARE ROW EXCLUSIVE MODE")
        tasks.start_soon(run)
        with anyio.fail_after(DEADLINE_S):
            while await anyio.to_thread.run_sync(postgres_database.run_sql, KILL_WAITING) == "":
                pass  # psql itself takes a while
    after = [await bench.list(), await bench.list_deleted()]
    if operation == "create":  # it is repeated, as nothing is there yet
        assert outcome[0].change.type == "created"
        assert [record["id"] for record in after[0]] == ["U"]
    else:
        assert outcome[0].retryable
        assert after == before
