"""Scenario 43: the column taken away and brought back: the trash is the same afterwards, or nothing was changed."""

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from services.environments_store.database.base import Database
from services.environments_store.database.connect import open_database
from services.environments_store.defaults import OperationLimits
from services.environments_store.errors import OperationError
from services.environments_store.operations.opening import open_table
from services.environments_store.operations.rollback import Trash, commands_to_undo, refuse_unsafe, roll_back, survey
from services.environments_store.operations.rollback_postgres import drop_column
from services.environments_store.schema.migrator import migrate_once
from tests.support.operations import LOGGER, exported, imported
from tests.support.postgres import PostgresDatabase
from tests.support.served import serving
from tests.support.shapes import make_sqlite, postgres_sql
from tests.support.store import Bench

pytestmark = pytest.mark.anyio

SHAPES = ["p_dmig", "p_dnew", "p_man", "p_inv", "p_a", "p_c", "s_d1", "s_d2", "s_man", "s_b2"]
TELLING = [
    ("p_dmig", "keep"),
    ("p_dmig", "remove"),
    ("p_man", "keep"),
    ("p_c", "remove"),
    ("s_d2", "keep"),
    ("s_b2", "remove"),
]
ROWS = 12
IMPATIENT = OperationLimits(rollback_wait_s=1)


class Place:
    """A migrated database with a trash, and how to look at it."""

    def __init__(self, url: str) -> None:
        self.url = url

    @asynccontextmanager
    async def bench(self) -> AsyncIterator[Bench]:
        async with open_table(self.url, LOGGER, writes=True) as opened:
            yield Bench(opened.database, opened.shape.status)

    async def lines(self) -> list[bytes]:
        async with self.bench() as bench:
            return await exported(bench)

    async def raw(self) -> list[tuple[str, ...]]:
        """Every row of the trash as the database itself writes it, dates to their last digit."""
        columns = ("id", "environment", '"environmentUuid"', '"timestamp"', '"createdAt"', '"updatedAt"', '"deletedAt"')
        shown = ", ".join(f"CAST({column} AS TEXT)" for column in columns)
        async with self._database() as database:
            query = f'SELECT {shown} FROM environments WHERE "deletedAt" IS NOT NULL ORDER BY id'
            return [tuple(row[position] for position in range(len(columns))) for row in await database.fetch(query)]

    async def columns(self) -> set[str]:
        async with self._database() as database:
            is_sqlite = database.dialect == "sqlite"
            table = "pragma_table_info('environments')" if is_sqlite else "pg_attribute"
            where = "" if is_sqlite else " WHERE attrelid = 'environments'::regclass AND NOT attisdropped"
            name = "name" if is_sqlite else "attname"
            return {row["name"] for row in await database.fetch(f"SELECT {name} AS name FROM {table}{where}")}

    async def run(self, statement: str) -> int:
        async with self._database() as database:
            return await database.execute(statement)

    @asynccontextmanager
    async def _database(self) -> AsyncIterator[Database]:
        database = open_database(self.url)
        await database.open()
        try:
            yield database
        finally:
            await database.close()


@asynccontextmanager
async def place(shape: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    if shape.startswith("s_"):
        make_sqlite(shape, tmp_path / "environments.sqlite")
        url = f"sqlite:///{tmp_path / 'environments.sqlite'}"
    else:
        database: PostgresDatabase = request.getfixturevalue("postgres_database")
        database.run_sql(postgres_sql(shape))
        url = database.url
    await migrate_once(url, logger=LOGGER)
    made = Place(url)
    async with made.bench() as bench:
        for number in range(ROWS):
            await bench.create(f"row-{number}", text="é\n😀" * 100)
            if number % 2:
                await bench.store.remove(f"row-{number}")
    yield made


@pytest.mark.parametrize(
    ("shape", "trash"),
    [
        pytest.param(shape, trash, marks=() if (shape, trash) in TELLING else pytest.mark.long)
        for shape in SHAPES
        for trash in ("keep", "remove")
    ],
)
async def test_m43_rollback_migration_and_import_give_the_same_trash(
    shape: str, trash: Trash, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    async with place(shape, request, tmp_path) as made:
        before, raw = await made.lines(), await made.raw()
        async with made.bench() as bench:
            saved = b"\n".join(await exported(bench, "deleted"))
        outcome = await roll_back(made.url, trash, force=False, logger=LOGGER)
        assert "deletedAt" not in await made.columns()
        assert outcome.rows == len(raw)
        async with made.bench() as bench:
            live = {record["id"] for record in await bench.list(fields=("id",))}
        gone = {row[0] for row in raw}
        assert gone & live == (gone if trash == "keep" else set())
        await migrate_once(made.url, logger=LOGGER)
        async with made.bench() as bench:
            result = await imported(bench, io.BytesIO(saved), "replace" if trash == "keep" else "fail")
            assert result == ((0, 0, len(raw)) if trash == "keep" else (len(raw), 0, 0))
        assert await made.lines() == before
        if shape != "p_man":  # its TIMESTAMP comes back as the TIMESTAMPTZ that a migration makes
            assert [row[6] for row in await made.raw()] == [row[6] for row in raw]


@pytest.mark.parametrize("trash", ["keep", "remove"])
@pytest.mark.parametrize("shape", ["p_dmig", "s_d2"])
async def test_m43_the_copy_in_the_database_is_a_way_back_too(
    shape: str, trash: Trash, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    async with place(shape, request, tmp_path) as made:
        before = await made.raw()
        outcome = await roll_back(made.url, trash, force=False, logger=LOGGER)
        await migrate_once(made.url, logger=LOGGER)
        migrate, sql = (command for command in commands_to_undo(outcome, "") if "import '" not in command)
        assert migrate == "environments-store migrate run"
        assert await made.run(sql.partition("SQL: ")[2].rstrip(";")) == len(before)
        assert await made.raw() == before


@pytest.mark.parametrize("shape", ["p_dmig", "s_d2"])
async def test_m43_without_a_choice_for_the_trash_it_is_refused(
    shape: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    async with place(shape, request, tmp_path) as made:
        seen = await survey(made.url, LOGGER)
        assert (seen.column, seen.serving) == (True, ())
        assert seen.deleted == len(await made.raw())
        with pytest.raises(OperationError, match="would be live again") as caught:
            refuse_unsafe(seen, None, True)
        assert f"{seen.deleted} deleted environment{'s' * (seen.deleted != 1)} of" in str(caught.value)
        refuse_unsafe(seen, "keep", False)


@pytest.mark.parametrize("shape", ["p_dmig", "s_d2"])
async def test_m43_while_a_node_serves_it_is_refused_unless_forced(
    shape: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    async with place(shape, request, tmp_path) as made, serving(made.url, node_id="the-node") as service:
        before = await made.raw() if shape == "p_dmig" else None
        with anyio.fail_after(30):
            while not (seen := await survey(made.url, LOGGER)).serving:  # noqa: ASYNC110 - the server tells of it
                await anyio.sleep(0.01)
        if shape == "p_dmig":
            assert "'the-node' serves" in seen.serving[0]
        with pytest.raises(OperationError, match="Stop every node first"):
            refuse_unsafe(seen, "keep", False)
        refuse_unsafe(seen, "keep", True)
        with pytest.raises(OperationError, match=r"serving the table|started to serve"):
            await roll_back(made.url, "keep", force=False, logger=LOGGER)
        if before is not None:
            assert await made.raw() == before
        await roll_back(made.url, "keep", force=True, logger=LOGGER)
        error = await service.failure("remove", uuid="row-0")
        assert error.type == "SOFT_DELETE_UNAVAILABLE"
        await service.until_state("degraded", "lost")
        assert len(await service.ask("list", fields=["id"])) >= ROWS


async def test_m43_who_holds_the_table_is_named_and_nothing_is_changed(
    postgres_database: PostgresDatabase, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    async with place("p_dmig", request, tmp_path) as made:
        before = await made.lines()
        async with open_table(made.url, LOGGER, writes=False) as opened:
            found = opened.found
        reader = open_database(made.url)
        await reader.open()
        try:
            async with reader.transaction() as connection:
                await connection.fetch("SELECT 1 FROM environments LIMIT 1")
                with pytest.raises(OperationError, match="could not be locked") as caught:
                    await drop_column(made.url, found, "copy", False, force=False, logger=LOGGER, limits=IMPATIENT)
                assert "AccessShareLock" in str(caught.value)
                # Others read on meanwhile, and the writes that waited go on at once.
                async with made.bench() as bench:
                    await bench.store.remove("row-0")
                    await bench.store.restore("row-0")
        finally:
            await reader.close()
        assert {line.split(b",")[0] for line in await made.lines()} == {line.split(b",")[0] for line in before}
        assert postgres_database.run_sql("SELECT to_regclass('copy') IS NULL") == "t"
        outcome = await roll_back(made.url, "keep", force=False, logger=LOGGER)
        assert outcome.rows == sum(b'"deletedAt":null' not in line for line in before)


async def test_m43_a_view_on_the_column_stops_it_and_nothing_is_changed(
    postgres_database: PostgresDatabase, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    async with place("p_dmig", request, tmp_path) as made:
        postgres_database.run_sql('CREATE VIEW trash AS SELECT id, "deletedAt" FROM environments')
        before = await made.raw()
        with pytest.raises(OperationError, match="nothing was changed"):
            await roll_back(made.url, "remove", force=False, logger=LOGGER)
        assert await made.raw() == before


@pytest.mark.parametrize("shape", ["p_dmig", "s_d1"])
async def test_m43_a_trigger_that_keeps_the_trash_stops_its_removal_and_nothing_is_changed(
    shape: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    async with place(shape, request, tmp_path) as made:
        before = await made.raw()
        if shape == "s_d1":
            await made.run("CREATE TRIGGER keep BEFORE DELETE ON environments BEGIN SELECT RAISE(IGNORE); END")
        else:
            await made.run("CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
            await made.run("CREATE TRIGGER keep BEFORE DELETE ON environments FOR EACH ROW EXECUTE FUNCTION keep()")
        with pytest.raises(OperationError, match=r"keeps deleted environments .* nothing was changed"):
            await roll_back(made.url, "remove", force=False, logger=LOGGER)
        assert await made.raw() == before
        assert "deletedAt" in await made.columns()


async def test_m43_a_role_that_does_not_own_the_table_is_told_so(
    postgres_database: PostgresDatabase, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    async with place("p_dmig", request, tmp_path):
        url = postgres_database.create_role("guest")
        role = postgres_database.role_name(url)
        postgres_database.run_sql(f'GRANT ALL ON environments TO "{role}"')
        with pytest.raises(OperationError, match="must own"):
            await roll_back(url, "keep", force=False, logger=LOGGER)


async def test_m43_rows_that_row_security_may_hide_are_not_lost(
    postgres_database: PostgresDatabase,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with place("p_dmig", request, tmp_path) as made:
        role = postgres_database.create_role()
        name = postgres_database.role_name(role)
        postgres_database.run_sql(
            f'ALTER TABLE environments OWNER TO "{name}"; GRANT ALL ON SCHEMA public TO "{name}";'
            "ALTER TABLE environments ENABLE ROW LEVEL SECURITY; ALTER TABLE environments FORCE ROW LEVEL SECURITY;"
            "CREATE POLICY some_rows ON environments USING (id LIKE 'row-1%')"
        )
        before = await made.raw()
        with pytest.raises(OperationError, match="BYPASSRLS"):
            await roll_back(role, "remove", force=False, logger=LOGGER)
        assert await made.raw() == before
        # What is counted is said to be a part.
        assert (await survey(role, LOGGER)).total < ROWS
        assert "Row level security may hide rows" in caplog.text


@pytest.mark.parametrize("shape", ["p_dmig", "s_d2"])
async def test_m43_without_the_column_there_is_nothing_to_roll_back(
    shape: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    async with place(shape, request, tmp_path) as made:
        await roll_back(made.url, "keep", force=False, logger=LOGGER)
        with pytest.raises(OperationError, match="nothing to roll back"):
            await roll_back(made.url, "keep", force=False, logger=LOGGER)
        assert not (await survey(made.url, LOGGER)).column
