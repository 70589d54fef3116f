"""What a purge deletes, what it leaves, and that it can be ended and repeated, on both databases."""

from collections.abc import Sequence
from contextlib import aclosing

import anyio
import pytest

from broker import ValidationError
from services.environments_store.defaults import OperationLimits
from services.environments_store.errors import DatabaseUnavailableError, SoftDeleteUnavailableError
from services.environments_store.model import Change
from services.environments_store.operations.doctor import examine
from services.environments_store.operations.purge import Kept, Purge, check_age
from services.environments_store.operations.retention import Retention
from services.environments_store.queries.purging import choose_purging
from services.environments_store.shape import TableShape
from tests.support.operations import LOGGER, TRASHABLE, fill, purge, shape_of
from tests.support.store import Bench

pytestmark = pytest.mark.anyio
with_column = pytest.mark.parametrize("bench", TRASHABLE, indirect=True)
LIMITS = OperationLimits()


async def ids(bench: Bench) -> set[str]:
    return {row["id"] for row in await bench.database.fetch("SELECT id FROM environments")}


async def purged(work: Purge, size: int = 500) -> list[Change]:
    return [change async for changes in work.batches(size) for change in changes]


async def steps_of_a_batch(bench: Bench) -> list[tuple[str, tuple[object, ...]]]:
    statements = choose_purging(bench.status)
    cutoff = await bench.database.fetch_one(statements.cutoff, 90)
    assert cutoff is not None
    ids = statements.pack_ids(["old-1", "old-2"])
    return [
        (statements.candidates, (cutoff["cutoff"], statements.first, ids, 10)),
        (statements.delete, (cutoff["cutoff"], ids)),
        (statements.left, (cutoff["cutoff"], ids)),
    ]


@with_column
async def test_what_is_older_goes_and_everything_else_stays(bench: Bench) -> None:
    await fill(bench, 25, deleted_days=91, prefix="old-")
    await fill(bench, 5, deleted_days=89, prefix="young-")
    await fill(bench, 5, prefix="live-")
    changes = await purged(await purge(bench, 90), size=10)
    assert {change.uuid for change in changes} == {f"old-{number}" for number in range(1, 26)}
    assert len(changes) == 25
    assert all(change.type == "purged" and change.hash is None and change.timestamp > 0 for change in changes)
    assert await ids(bench) == {f"{kind}-{number}" for kind in ("young", "live") for number in range(1, 6)}


@with_column
async def test_a_purge_is_done_in_batches_and_goes_on_where_another_ended(bench: Bench) -> None:
    await fill(bench, 25, deleted_days=91)
    work = await purge(bench, 90)
    async with aclosing(work.batches(10)) as batches:
        async for changes in batches:
            assert len(changes) == 10
            break
    assert await work.remaining() == 15
    assert len(await purged(await purge(bench, 90))) == 15
    assert await work.remaining() == 0


@with_column
async def test_a_forecast_counts_by_month_and_deletes_nothing(bench: Bench) -> None:
    for uuid, date in (
        ("a", "2024-12-31 23:59:59.999"),
        ("b", "2025-01-01 00:00:00.000"),
        ("c", "2025-01-31 10:00:00.5"),
    ):
        await bench.create(uuid)
        await bench.set_date(uuid, "deletedAt", date.ljust(23, "0"))
    await fill(bench, 3, deleted_days=1)
    forecast = await (await purge(bench, 90)).forecast()
    assert forecast.candidates == 3
    assert forecast.months == {"2024-12": 1, "2025-01": 2}
    assert (forecast.oldest, forecast.newest) == ("2024-12-31T23:59:59.999Z", "2025-01-31T10:00:00.500Z")
    assert len(await ids(bench)) == 6


@with_column
async def test_an_empty_trash_is_purged_in_no_time(bench: Bench) -> None:
    await bench.create("live")
    work = await purge(bench, 0)
    assert await purged(work) == []
    assert await work.forecast() == (0, {}, None, None)


@with_column
async def test_the_cutoff_does_not_move_while_a_purge_runs(bench: Bench) -> None:
    work = await purge(bench, 0)
    await bench.create("later")
    await anyio.sleep(0.002)  # the clock of the database has to tick, in milliseconds
    await bench.store.remove("later")
    assert await purged(work) == []


@with_column
async def test_the_batch_is_found_by_the_index(bench: Bench) -> None:
    await fill(bench, 2000, prefix="live-")
    await fill(bench, 50, deleted_days=91)
    column = "deletedAt" if bench.is_sqlite else '"deletedAt"'
    await bench.run(f"CREATE INDEX ix ON environments ({column}) WHERE {column} IS NOT NULL")
    await bench.run("ANALYZE environments")
    for query, arguments in await steps_of_a_batch(bench):
        explain = "EXPLAIN QUERY PLAN" if bench.is_sqlite else "EXPLAIN"
        rows = await bench.database.fetch(f"{explain} {query}", *arguments)
        shown = "\n".join(str(row["detail"] if bench.is_sqlite else row[0]) for row in rows)
        assert "SCAN environments" not in shown
        assert "Seq Scan" not in shown
        assert "ix" in shown or "pkey" in shown or "autoindex" in shown


@pytest.mark.parametrize("bench", ["postgresql", "postgresql with the guide's TIMESTAMP"], indirect=True)
async def test_a_trash_that_the_planner_does_not_know_of_is_not_read_whole_for_each_batch(bench: Bench) -> None:
    await fill(bench, 2000, prefix="live-")
    await bench.run('CREATE INDEX ix ON environments ("deletedAt")')
    await bench.run("ANALYZE environments")
    await bench.run("ALTER TABLE environments SET (autovacuum_enabled = off)")
    await fill(bench, 2000, deleted_days=91, prefix="old-")
    for query, arguments in await steps_of_a_batch(bench):
        shown = "\n".join(row[0] for row in await bench.database.fetch(f"EXPLAIN {query}", *arguments))
        assert "Seq Scan" not in shown
        assert "Sort" not in shown


GUARDS = {
    "swallowed": ("SELECT RAISE(IGNORE)", "RETURN NULL", "trigger keep"),
    "raised": ("SELECT RAISE(ABORT, 'leave it')", "RAISE EXCEPTION 'leave it'", "The database refused it: leave it."),
}


@pytest.mark.parametrize("bench", ["sqlite", "postgresql"], indirect=True)
@pytest.mark.parametrize(("sqlite", "postgresql", "by"), GUARDS.values(), ids=GUARDS)
async def test_what_the_database_keeps_holds_up_none_of_the_others(
    bench: Bench, sqlite: str, postgresql: str, by: str
) -> None:
    await fill(bench, 25, deleted_days=91, prefix="old-")
    # The oldest, so that each batch would meet them first; one in three has the same date as the next.
    await fill(bench, 12, deleted_days=95, prefix="keep-")
    column = "deletedAt" if bench.is_sqlite else '"deletedAt"'
    same = f"(SELECT min({column}) FROM environments)"
    await bench.run(f"UPDATE environments SET {column} = {same} WHERE id LIKE 'keep-%' AND id < 'keep-6'")
    if bench.is_sqlite:
        when = "WHEN OLD.id LIKE 'keep-%'"
        await bench.run(f"CREATE TRIGGER keep BEFORE DELETE ON environments {when} BEGIN {sqlite}; END")
    else:
        body = f"BEGIN IF OLD.id LIKE 'keep-%' THEN {postgresql}; END IF; RETURN OLD; END"
        await bench.run(f"CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $${body}$$")
        await bench.run("CREATE TRIGGER keep BEFORE DELETE ON environments FOR EACH ROW EXECUTE FUNCTION keep()")
    work = await purge(bench, 90)
    assert len(await purged(work, size=5)) == 25
    assert await ids(bench) == {f"keep-{number}" for number in range(1, 13)}
    assert (work.kept, await work.remaining()) == (12, 12)
    assert {one.by for one in work.examples} == {by}
    assert {one.uuid for one in work.examples} == await ids(bench)


@pytest.mark.parametrize("bench", ["postgresql"], indirect=True)
async def test_a_row_that_a_foreign_key_holds_is_named_with_it_by_purge_and_doctor(
    bench: Bench, postgres_url: str
) -> None:
    await fill(bench, 30, deleted_days=91, prefix="old-")
    await bench.run("CREATE TABLE shares (env varchar CONSTRAINT held REFERENCES environments (id))")
    await bench.run("INSERT INTO shares VALUES ('old-7'), ('old-7'), ('old-30')")
    work = await purge(bench, 90)
    assert len(await purged(work, size=10)) == 28
    assert sorted(work.examples) == [Kept("old-30", "constraint held"), Kept("old-7", "constraint held")]
    findings = [one for one in (await examine(postgres_url, LOGGER)).findings if one.subject == "kept"]
    assert [finding.message for finding in findings] == [
        "2 environments are referenced by the constraint held of shares: no purge deletes them: old-30, old-7."
    ]


@pytest.mark.parametrize("bench", ["sqlite", "postgresql"], indirect=True)
async def test_a_view_and_a_table_without_row_numbers_are_purged_by_key(bench: Bench) -> None:
    await bench.run("ALTER TABLE environments RENAME TO original")
    if bench.is_sqlite:
        made = await bench.database.fetch_one("SELECT sql FROM sqlite_master WHERE name = 'original'")
        assert made is not None
        await bench.run(f"{made['sql'].replace('original', 'environments')} WITHOUT ROWID")
    else:
        await bench.run("CREATE VIEW environments AS SELECT * FROM original")
    await fill(bench, 12, deleted_days=91)
    await fill(bench, 2, prefix="live-")
    assert len(await purged(await purge(bench, 90), size=5)) == 12
    assert await ids(bench) == {"live-1", "live-2"}


@pytest.mark.parametrize("bench", ["sqlite without deletedAt", "postgresql without deletedAt"], indirect=True)
async def test_without_the_column_nothing_is_purged(bench: Bench) -> None:
    await bench.create("U")
    with pytest.raises(SoftDeleteUnavailableError):
        await purge(bench, 90)
    assert await ids(bench) == {"U"}


@with_column
async def test_a_column_that_vanishes_ends_the_purge_and_is_reported(bench: Bench) -> None:
    await fill(bench, 3, deleted_days=91)
    reports: list[int] = []
    shape = TableShape(lambda: bench.status, lambda: reports.append(1))
    work = await Purge.older_than(90, bench.database, shape)
    name = "deletedAt" if bench.is_sqlite else '"deletedAt"'
    await bench.run(f"ALTER TABLE environments DROP COLUMN {name}")
    with pytest.raises(SoftDeleteUnavailableError):
        await purged(work)
    assert reports == [1]
    assert len(await ids(bench)) == 3


@pytest.mark.parametrize("days", [0])
def test_less_than_a_day_needs_force(days: int) -> None:
    with pytest.raises(ValidationError) as caught:
        check_age(days, False, LIMITS)
    assert caught.value.data[0]["field"] == "olderThanDays"
    check_age(days, True, LIMITS)
    check_age(1, False, LIMITS)


@with_column
async def test_the_automatic_purge_comes_by_itself_again_and_again(bench: Bench) -> None:
    told: list[str] = []
    first, second = anyio.Event(), anyio.Event()

    async def tell(changes: Sequence[Change]) -> None:
        told.extend(change.uuid for change in changes)
        (second if first.is_set() else first).set()

    await fill(bench, 3, deleted_days=31, prefix="old-")
    await fill(bench, 3, deleted_days=29, prefix="young-")
    limits = OperationLimits(retention_first_s=0.001, retention_every_s=0.01)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Retention(30, bench.database, shape_of(bench), tell, LOGGER, limits).run)
        with anyio.fail_after(30):
            await first.wait()
            await fill(bench, 2, deleted_days=31, prefix="later-")
            await second.wait()
        tasks.cancel_scope.cancel()
    assert sorted(told) == ["later-1", "later-2", "old-1", "old-2", "old-3"]
    assert await ids(bench) == {"young-1", "young-2", "young-3"}


@pytest.mark.parametrize("bench", ["postgresql"], indirect=True)
async def test_an_automatic_purge_that_fails_is_tried_again(bench: Bench) -> None:
    await fill(bench, 3, deleted_days=31)
    attempts: list[int] = []
    done = anyio.Event()

    async def tell(changes: Sequence[Change]) -> None:
        attempts.append(len(changes))
        if len(attempts) == 1:
            raise DatabaseUnavailableError("the connection went away")
        done.set()

    limits = OperationLimits(retention_first_s=0.001, retention_every_s=0.01)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Retention(30, bench.database, shape_of(bench), tell, LOGGER, limits).run)
        with anyio.fail_after(30):
            while not attempts:  # noqa: ASYNC110 - the first attempt fails on purpose
                await anyio.sleep(0.005)
            await fill(bench, 1, deleted_days=31, prefix="next-")
            await done.wait()
        tasks.cancel_scope.cancel()
    assert attempts == [3, 1]
