"""What each operation does to an environment in each state, on both databases."""

import re
from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from services.environments_store.database.base import Database, Row
from services.environments_store.defaults import StoreLimits
from services.environments_store.errors import (
    DatabaseError,
    EnvironmentChangedError,
    EnvironmentDeletedError,
    EnvironmentExistsError,
    EnvironmentNotDeletedError,
    EnvironmentNotFoundError,
)
from services.environments_store.hash import content_hash
from services.environments_store.model import RECORD_FIELDS, Change
from tests.support.store import Bench, read

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize(
        "bench",
        ["sqlite", "postgresql", "postgresql with the guide's TIMESTAMP", "postgresql with jsonb"],
        indirect=True,
    ),
]

UUID = "c0ffee00-0000-4000-8000-000000000001"
ISO_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
DAY_MS = 86_400_000


class Counting:
    """The database, and how often it was asked."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.reads = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    async def fetch(self, query: str, *arguments: object) -> Sequence[Row]:
        self.reads += 1
        return await self._database.fetch(query, *arguments)

    async def fetch_one(self, query: str, *arguments: object) -> Row | None:
        self.reads += 1
        return await self._database.fetch_one(query, *arguments)


async def test_create_answers_with_the_whole_record(bench: Bench) -> None:
    written = await bench.store.create(b'{"uuid":"%s","name":"Env 1 \xc3\xa9","port":3001}' % UUID.encode())
    record = read(written.record)
    document = {"uuid": UUID, "name": "Env 1 é", "port": 3001}
    assert tuple(record) == RECORD_FIELDS
    assert record["id"] == record["environmentUuid"] == UUID
    assert record["environment"] == document
    assert record["hash"] == content_hash(b'{"name":"Env 1 \xc3\xa9","port":3001,"uuid":"%s"}' % UUID.encode())
    assert type(record["timestamp"]) is int
    assert ISO_DATE.fullmatch(record["createdAt"])
    assert record["updatedAt"] == record["createdAt"]
    assert record["deletedAt"] is None
    assert written.change == Change(type="created", uuid=UUID, hash=record["hash"], timestamp=record["timestamp"])


async def test_get_answers_with_the_record_that_create_gave(bench: Bench) -> None:
    written = await bench.store.create(b'{"uuid":"%s","name":"one"}' % UUID.encode())
    assert await bench.store.get(UUID) == written.record


async def test_the_timestamp_is_the_instant_of_the_creation(bench: Bench) -> None:
    record = await bench.create(UUID)
    clock = (
        "SELECT julianday($1) - 2440587.5 AS days"
        if bench.is_sqlite
        else ("SELECT extract(epoch FROM $1::text::timestamptz) / 86400 AS days")
    )
    row = await bench.database.fetch_one(clock, record["createdAt"])
    assert row is not None
    assert round(float(row["days"]) * DAY_MS) == record["timestamp"]


async def test_dates_are_stored_in_the_form_the_original_writes(bench: Bench) -> None:
    record = await bench.create(UUID)
    await bench.store.remove(UUID)
    columns = "createdAt, updatedAt, deletedAt" if bench.is_sqlite else '"createdAt", "updatedAt", "deletedAt"'
    row = await bench.database.fetch_one(f"SELECT {columns} FROM environments")
    assert row is not None
    if bench.is_sqlite:  # this text alone sorts rightly beside those already there
        for column in range(3):
            assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} \+00:00", row[column])
        assert row[0] == f"{record['createdAt'][:10]} {record['createdAt'][11:23]} +00:00"
    else:  # whole milliseconds: JavaScript reads no more
        assert all(row[column].microsecond % 1_000 == 0 for column in range(3))


async def test_create_of_a_live_uuid_is_refused_and_changes_nothing(bench: Bench) -> None:
    record = await bench.create(UUID, name="first")
    with pytest.raises(EnvironmentExistsError) as caught:
        await bench.create(UUID, name="second")
    assert (caught.value.code, caught.value.type, caught.value.data) == (409, "ENVIRONMENT_EXISTS", {"uuid": UUID})
    assert read(await bench.store.get(UUID)) == record


async def test_create_of_a_uuid_in_the_trash_is_refused_and_the_trash_keeps_it(bench: Bench) -> None:
    await bench.create(UUID, name="first")
    await bench.store.remove(UUID)
    trash = await bench.list_deleted()
    with pytest.raises(EnvironmentDeletedError) as caught:
        await bench.create(UUID, name="second")
    assert (caught.value.code, caught.value.type) == (409, "ENVIRONMENT_DELETED")
    assert await bench.list_deleted() == trash


async def test_of_many_creates_of_one_uuid_at_once_one_wins(bench: Bench) -> None:
    outcomes = await at_once(10, lambda number: bench.create(UUID, number=number))
    winners = [outcome for outcome in outcomes if isinstance(outcome, dict)]
    assert len(winners) == 1
    assert sum(isinstance(outcome, EnvironmentExistsError) for outcome in outcomes) == 9
    assert read(await bench.store.get(UUID)) == winners[0]


@pytest.mark.parametrize("operation", ["get", "update", "remove", "restore", "permanent_delete", "force"])
async def test_an_unknown_uuid_is_not_found(bench: Bench, operation: str) -> None:
    await bench.create("another")
    with pytest.raises(EnvironmentNotFoundError) as caught:
        await call(bench, operation, UUID)
    assert (caught.value.code, caught.value.type, caught.value.data) == (404, "ENVIRONMENT_NOT_FOUND", {"uuid": UUID})
    assert await bench.store.stats(7) == {"total": 1, "active": 1, "deleted": 0, "recentlyDeleted": 0}


@pytest.mark.parametrize("operation", ["get", "update", "update with hash"])
async def test_a_deleted_environment_is_not_found_and_no_edit_revives_it(bench: Bench, operation: str) -> None:
    record = await bench.create(UUID, name="first")
    await bench.store.remove(UUID)
    trash = await bench.list_deleted()
    with pytest.raises(EnvironmentNotFoundError):
        await call(bench, operation, UUID, record["hash"])
    assert await bench.list_deleted() == trash
    assert await bench.list() == []


async def test_update_replaces_the_document_and_keeps_the_date_of_creation(bench: Bench) -> None:
    before = await bench.create(UUID, name="first")
    await bench.set_date(UUID, "createdAt", "2025-05-27 08:54:47.123")
    written = await bench.store.update(UUID, b'{"uuid":"%s","name":"second"}' % UUID.encode())
    record = read(written.record)
    assert record["environment"] == {"uuid": UUID, "name": "second"}
    assert record["hash"] != before["hash"]
    assert record["createdAt"] == "2025-05-27T08:54:47.123Z"
    assert record["updatedAt"] >= before["updatedAt"]
    assert record["timestamp"] >= before["timestamp"]
    assert record == read(await bench.store.get(UUID))
    assert written.change == Change(type="updated", uuid=UUID, hash=record["hash"], timestamp=record["timestamp"])


async def test_update_with_the_current_hash_is_stored(bench: Bench) -> None:
    record = await bench.create(UUID, name="first")
    written = await bench.store.update(UUID, b'{"uuid":"%s","name":"second"}' % UUID.encode(), record["hash"])
    assert read(written.record)["environment"]["name"] == "second"


async def test_update_with_another_hash_is_refused_with_the_current_one(bench: Bench) -> None:
    record = await bench.create(UUID, name="first")
    with pytest.raises(EnvironmentChangedError) as caught:
        await bench.store.update(UUID, b'{"uuid":"%s"}' % UUID.encode(), "0" * 40)
    assert (caught.value.code, caught.value.type) == (409, "ENVIRONMENT_CHANGED")
    assert caught.value.data == {"uuid": UUID, "hash": record["hash"]}
    assert read(await bench.store.get(UUID)) == record


async def test_many_writers_that_compare_hashes_lose_no_change(bench: Bench) -> None:
    await bench.create(UUID, count=0)

    async def increment(_: int) -> int:
        conflicts = 0
        while True:
            record = read(await bench.store.get(UUID))
            document = b'{"uuid":"%s","count":%d}' % (UUID.encode(), record["environment"]["count"] + 1)
            try:
                await bench.store.update(UUID, document, record["hash"])
                return conflicts
            except EnvironmentChangedError:
                conflicts += 1

    conflicts = await at_once(8, increment)
    assert read(await bench.store.get(UUID))["environment"]["count"] == 8
    assert sum(conflicts) > 0


async def test_remove_hides_and_lists_as_deleted(bench: Bench) -> None:
    before = await bench.create(UUID, name="first")
    written = await bench.store.remove(UUID)
    assert await bench.list() == []
    [record] = await bench.list_deleted()
    assert record["deletedAt"] == record["updatedAt"] >= before["updatedAt"]
    assert ISO_DATE.fullmatch(record["deletedAt"])
    same = ("id", "environment", "hash", "timestamp", "createdAt")
    assert {key: record[key] for key in same} == {key: before[key] for key in same}
    assert written.change == Change(type="removed", uuid=UUID, hash=before["hash"], timestamp=before["timestamp"])


async def test_the_date_of_removal_is_utc_whatever_the_zone_of_the_database(bench: Bench) -> None:
    before = await bench.create(UUID)
    await bench.store.remove(UUID)
    [record] = await bench.list_deleted()
    assert before["createdAt"] <= record["deletedAt"]
    assert (await bench.store.stats(1))["recentlyDeleted"] == 1
    assert record["deletedAt"][:10] in (before["createdAt"][:10], record["updatedAt"][:10])


async def test_removing_again_succeeds_and_keeps_the_first_date(bench: Bench) -> None:
    await bench.create(UUID)
    await bench.store.remove(UUID)
    await bench.set_date(UUID, "deletedAt", "2025-05-27 08:54:47.123")
    trash = await bench.list_deleted()
    assert trash[0]["deletedAt"] == "2025-05-27T08:54:47.123Z"
    written = await bench.store.remove(UUID)
    assert written.change is None
    assert await bench.list_deleted() == trash


async def test_of_many_removes_at_once_one_is_the_change(bench: Bench) -> None:
    await bench.create(UUID)
    outcomes = await at_once(10, lambda _: bench.store.remove(UUID))
    assert [outcome.change.type for outcome in outcomes if outcome.change] == ["removed"]


async def test_restore_makes_it_live_again_as_it_was(bench: Bench) -> None:
    before = await bench.create(UUID, name="first")
    await bench.store.remove(UUID)
    written = await bench.store.restore(UUID)
    assert await bench.list_deleted() == []
    [record] = await bench.list()
    assert record["updatedAt"] >= before["updatedAt"]
    assert record == {**before, "updatedAt": record["updatedAt"]}
    assert written.change == Change(type="restored", uuid=UUID, hash=before["hash"], timestamp=before["timestamp"])


async def test_restoring_a_live_one_succeeds_and_writes_nothing(bench: Bench) -> None:
    before = await bench.create(UUID)
    written = await bench.store.restore(UUID)
    assert written.change is None
    assert read(await bench.store.get(UUID)) == before


async def test_permanent_delete_of_a_deleted_one_takes_the_row_away(bench: Bench) -> None:
    before = await bench.create(UUID)
    await bench.store.remove(UUID)
    written = await bench.store.permanent_delete(UUID)
    assert (await bench.store.stats(7))["total"] == 0
    assert written.change == Change(type="purged", uuid=UUID, hash=before["hash"], timestamp=before["timestamp"])
    with pytest.raises(EnvironmentNotFoundError):
        await bench.store.permanent_delete(UUID)


async def test_permanent_delete_of_a_live_one_needs_force(bench: Bench) -> None:
    record = await bench.create(UUID)
    with pytest.raises(EnvironmentNotDeletedError) as caught:
        await bench.store.permanent_delete(UUID)
    assert (caught.value.code, caught.value.type) == (409, "ENVIRONMENT_NOT_DELETED")
    assert read(await bench.store.get(UUID)) == record
    written = await bench.store.permanent_delete(UUID, force=True)
    assert written.change is not None
    assert written.change.type == "purged"
    assert (await bench.store.stats(7))["total"] == 0


async def test_a_uuid_deleted_for_ever_can_be_created_again(bench: Bench) -> None:
    await bench.create(UUID, name="first")
    await bench.store.permanent_delete(UUID, force=True)
    assert (await bench.create(UUID, name="second"))["environment"]["name"] == "second"


async def test_stats_count_the_live_the_deleted_and_the_recently_deleted(bench: Bench) -> None:
    assert await bench.store.stats(7) == {"total": 0, "active": 0, "deleted": 0, "recentlyDeleted": 0}
    for name in ("live", "fresh", "old"):
        await bench.create(name)
    await bench.store.remove("fresh")
    await bench.store.remove("old")
    await bench.set_date("old", "deletedAt", "2020-01-01 00:00:00.000")
    assert await bench.store.stats(7) == {"total": 3, "active": 1, "deleted": 2, "recentlyDeleted": 1}
    assert (await bench.store.stats(36_500))["recentlyDeleted"] == 2
    assert (await bench.store.stats(0))["recentlyDeleted"] == 0


async def test_a_row_whose_id_differs_is_found_by_its_environment_uuid(bench: Bench) -> None:
    await bench.create("row-1", name="adopted")
    column = "environmentUuid" if bench.is_sqlite else '"environmentUuid"'
    await bench.run(f"UPDATE environments SET {column} = $1 WHERE id = $2", UUID, "row-1")
    record = read(await bench.store.get(UUID))
    assert (record["id"], record["environmentUuid"]) == ("row-1", UUID)


@pytest.mark.parametrize("most", [0, 10])
async def test_the_table_is_not_read_for_each_environment_that_is_not_there(bench: Bench, most: int) -> None:
    database = Counting(bench.database)
    store = bench.store_on(database, StoreLimits(aliases=most))
    await bench.create("row-1", name="adopted")
    column = "environmentUuid" if bench.is_sqlite else '"environmentUuid"'
    await bench.run(f"UPDATE environments SET {column} = $1 WHERE id = $2", UUID, "row-1")

    async def ask(uuid: str) -> None:
        with pytest.raises(EnvironmentNotFoundError):
            await store.get(uuid)

    async with anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(ask, f"nobody-{number}")
    # One by its id for each; the column without an index once for all, or once for each when it holds too many.
    assert database.reads == 10 + 1 + (10 if most == 0 else 0)
    assert read(await store.get(UUID))["id"] == "row-1"

    forgetful = bench.store_on(bench.database, StoreLimits(aliases_s=0))
    await bench.create("row-2")
    with pytest.raises(EnvironmentNotFoundError):
        await forgetful.get("another")
    await bench.run(f"UPDATE environments SET {column} = $1 WHERE id = $2", "another", "row-2")
    assert read(await forgetful.get("another"))["id"] == "row-2"


async def test_a_row_without_a_document_is_reported_and_listed_with_null(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.create("before")
    await bench.create(UUID)
    await bench.run("UPDATE environments SET environment = NULL WHERE id = $1", UUID)
    assert [(record["id"], record["environment"], record["hash"]) for record in await bench.list(after="before")] == [
        (UUID, None, None)
    ]
    assert [record["id"] for record in await bench.list()] == ["before", UUID]
    assert UUID in caplog.text
    with pytest.raises(DatabaseError, match="damaged") as caught:
        await bench.store.get(UUID)
    assert caught.value.code == 500
    assert (await bench.store.remove(UUID)).change is not None
    assert (await bench.store.permanent_delete(UUID)).change is not None


async def test_a_timestamp_is_always_a_whole_number(bench: Bench) -> None:
    record = await bench.create(UUID)
    column = "timestamp" if bench.is_sqlite else '"timestamp"'
    values = ["1748340000124.75", "NULL"] + ([] if bench.is_sqlite else ["'NaN'::numeric"])
    expected = [1748340000124, record["timestamp"], record["timestamp"]]
    for value, number in zip(values, expected, strict=False):
        await bench.run(f"UPDATE environments SET {column} = {value} WHERE id = $1", UUID)
        assert read(await bench.store.get(UUID))["timestamp"] == number


async def test_a_failing_query_is_an_error_and_never_an_empty_list(bench: Bench) -> None:
    await bench.create(UUID)
    await bench.run("ALTER TABLE environments RENAME TO elsewhere")
    for operation in ("list", "list_deleted", "get", "stats"):
        with pytest.raises(Exception) as caught:  # noqa: PT011 -- which typed error is the adapter's contract
            await call(bench, operation, UUID)
        assert getattr(caught.value, "code", 0) in (500, 503)


async def call(bench: Bench, operation: str, uuid: str, hash: str | None = None) -> Any:
    document = b'{"uuid":"%s","name":"changed"}' % uuid.encode()
    match operation:
        case "list":
            return await bench.list()
        case "list_deleted":
            return await bench.list_deleted()
        case "stats":
            return await bench.store.stats(7)
        case "update":
            return await bench.store.update(uuid, document)
        case "update with hash":
            return await bench.store.update(uuid, document, hash)
        case "force":
            return await bench.store.permanent_delete(uuid, force=True)
    return await getattr(bench.store, operation)(uuid)


async def at_once(times: int, function: Any) -> list[Any]:
    """Run `function(number)` that many times together; what each returned or raised."""
    outcomes: list[Any] = []

    async def run(number: int) -> None:
        try:
            outcomes.append(await function(number))
        except Exception as error:
            outcomes.append(error)

    async with anyio.create_task_group() as group:
        for number in range(times):
            group.start_soon(run, number)
    return outcomes
