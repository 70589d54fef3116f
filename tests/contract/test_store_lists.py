"""Lists: their order, their pages, their fields, and how much of them one reply may hold."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from broker.errors import PayloadTooLargeError, ValidationError
from services.environments_store.database.base import Documents, Row
from services.environments_store.defaults import StoreLimits
from services.environments_store.errors import EnvironmentNotFoundError
from services.environments_store.listing import ListRequest
from services.environments_store.model import RECORD_FIELDS
from tests.support.store import Bench, read

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("bench", ["sqlite", "postgresql", "postgresql with the guide's TIMESTAMP"], indirect=True),
]

# By date, then by id in the order of code points, whatever the collation of the database.
LIVE = [("m", 1), ("B", 2), ("a", 2), ("é", 2), ("A", 3), ("c", 4), ("b", 5)]
TRASH = [("b", 5), ("c", 4), ("A", 3), ("B", 2), ("a", 2), ("é", 2), ("m", 1)]


async def fill(bench: Bench, deleted: bool = False) -> list[str]:
    for name, second in reversed(LIVE):
        await bench.create(name, filler="x" * 100)
        await bench.set_date(name, "createdAt", f"2025-05-27 08:54:{second:02}.123")
        if deleted:
            await bench.store.remove(name)
            await bench.set_date(name, "deletedAt", f"2025-05-28 08:54:{second:02}.123")
    return [name for name, _ in (TRASH if deleted else LIVE)]


async def test_live_ones_are_listed_by_date_of_creation_then_id(bench: Bench) -> None:
    expected = await fill(bench)
    records = await bench.list()
    assert [record["id"] for record in records] == expected
    assert records[0] == read(await bench.store.get("m"))


async def test_deleted_ones_are_listed_newest_first_then_by_id(bench: Bench) -> None:
    expected = await fill(bench, deleted=True)
    records = await bench.list_deleted()
    assert [record["id"] for record in records] == expected
    assert tuple(records[0]) == RECORD_FIELDS
    assert records[0]["deletedAt"] == "2025-05-28T08:54:05.123Z"
    assert await bench.list() == []


@pytest.mark.parametrize("deleted", [False, True])
@pytest.mark.parametrize("fields", [RECORD_FIELDS, ("id",)])
async def test_pages_together_are_the_whole_list(bench: Bench, deleted: bool, fields: Sequence[str]) -> None:
    expected = await fill(bench, deleted)
    read_page = bench.list_deleted if deleted else bench.list
    for size in (1, 2, 3, 7, 50):
        found: list[str] = []
        while page := await read_page(limit=size, after=found[-1] if found else None, fields=fields):
            assert len(page) <= size
            found += [record["id"] for record in page]
        assert found == expected


async def test_the_rest_after_an_environment_needs_no_limit(bench: Bench) -> None:
    expected = await fill(bench)
    assert [record["id"] for record in await bench.list(after="a")] == expected[3:]


async def test_pages_stay_whole_while_others_remove_update_and_create(bench: Bench) -> None:
    expected = await fill(bench)
    first = await bench.list(limit=3)
    await bench.store.remove("B")
    await bench.store.remove("a")  # the one to go on after
    await bench.store.remove("A")
    await bench.store.update("c", b'{"uuid":"c","name":"changed"}')
    await bench.create("new")
    rest = await bench.list(limit=50, after="a")
    assert [record["id"] for record in first] == expected[:3]
    assert [record["id"] for record in rest] == ["é", "c", "b", "new"]


async def test_going_on_after_what_is_gone_is_an_error_not_the_end(bench: Bench) -> None:
    await fill(bench)
    await bench.store.permanent_delete("a", force=True)
    with pytest.raises(EnvironmentNotFoundError) as caught:
        await bench.list(after="a")
    assert caught.value.data == {"uuid": "a", "field": "after"}
    with pytest.raises(EnvironmentNotFoundError):
        await bench.list_deleted(after="m")  # live: it has no place in the trash
    with pytest.raises(ValidationError):
        await bench.list(after="")


async def test_the_page_after_the_last_is_empty(bench: Bench) -> None:
    await fill(bench)
    assert await bench.list(after="b") == []


@pytest.mark.parametrize(
    "fields", [("id",), ("hash", "id"), ("environment",), ("deletedAt", "timestamp"), RECORD_FIELDS]
)
async def test_fields_choose_the_keys_of_the_records(bench: Bench, fields: Sequence[str]) -> None:
    await fill(bench)
    whole = await bench.list()
    assert await bench.list(fields=fields) == [{key: record[key] for key in fields} for record in whole]


async def test_a_list_that_asks_for_no_document_reads_none(bench: Bench) -> None:
    await fill(bench)
    watched = Watched(bench)
    request = ListRequest(fields=("id", "timestamp", "createdAt", "updatedAt", "deletedAt", "environmentUuid"))
    await bench.store_on(watched).list(request)
    assert watched.documents == 0
    await bench.store_on(watched).list(ListRequest(fields=("hash",)))
    assert watched.documents == len(LIVE)


@pytest.mark.parametrize("deleted", [False, True])
async def test_a_list_too_large_for_a_reply_names_the_page_size_that_fits(bench: Bench, deleted: bool) -> None:
    expected = await fill(bench, deleted)
    store_list = bench.store.list_deleted if deleted else bench.store.list
    reply_limit = len(await store_list(ListRequest(limit=4)))
    assert len(read(await store_list(ListRequest(limit=4, reply_limit=reply_limit)))) == 4
    for limit in (None, 5, 1_000):
        with pytest.raises(PayloadTooLargeError) as caught:
            await store_list(ListRequest(limit=limit, reply_limit=reply_limit))
        assert (caught.value.code, caught.value.type) == (413, "PAYLOAD_TOO_LARGE")
        assert caught.value.data == {"limit": reply_limit, "pageSize": 4}
        assert "limit: 4" in str(caught.value)
    page = read(await store_list(ListRequest(limit=4, reply_limit=reply_limit)))
    assert [record["id"] for record in page] == expected[:4]


async def test_one_record_too_large_for_a_reply_names_the_field_to_leave_out(bench: Bench) -> None:
    await fill(bench)
    with pytest.raises(PayloadTooLargeError, match="without the field 'environment'") as caught:
        await bench.store.list(ListRequest(reply_limit=300))
    assert caught.value.data["pageSize"] == 0
    assert caught.value.data["size"] > 300
    fields = tuple(field for field in RECORD_FIELDS if field != "environment")
    assert read(await bench.store.list(ListRequest(limit=1, fields=fields, reply_limit=300)))


@pytest.mark.parametrize("limit", [None, 50])
async def test_a_list_reads_hardly_more_than_a_reply_holds(bench: Bench, limit: int | None) -> None:
    for number in range(60):
        await bench.create(f"{number:03}")
    watched = Watched(bench)
    limits = StoreLimits(batch_documents=5)
    with pytest.raises(PayloadTooLargeError):
        await bench.store_on(watched, limits).list(ListRequest(limit=limit, reply_limit=2_000))
    assert 0 < watched.rows <= 16  # a look whether one batch is all, and two batches
    assert len(await bench.list()) == 60


@pytest.mark.parametrize(("batch", "ways"), [(len(LIVE), ["fetch"]), (len(LIVE) - 1, ["fetch", "stream"])])
async def test_a_list_that_fits_one_batch_takes_one_statement_and_no_transaction(
    bench: Bench, batch: int, ways: list[str]
) -> None:
    expected = await fill(bench)
    watched = Watched(bench)
    store = bench.store_on(watched, StoreLimits(batch_documents=batch))
    assert [record["id"] for record in read(await store.list(ListRequest()))] == expected
    assert watched.ways == ways
    assert len(read(await store.list(ListRequest(limit=batch)))) == batch
    assert watched.ways == [*ways, "fetch"]


class Watched:
    """The database, with a count of the rows and documents that were read through it."""

    def __init__(self, bench: Bench) -> None:
        self._database = bench.database
        self.rows = 0
        self.documents = 0
        self.ways: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    def count(self, rows: Sequence[Row]) -> Sequence[Row]:
        self.rows += len(rows)
        self.documents += sum(row["environment"] is not None for row in rows)
        return rows

    async def fetch(self, query: str, *arguments: object) -> Sequence[Row]:
        self.ways.append("fetch")
        return self.count(await self._database.fetch(query, *arguments))

    @asynccontextmanager
    async def stream(
        self, query: str, *arguments: object, batch: int, paced: bool = False, documents: Documents | None = None
    ) -> AsyncGenerator[AsyncIterator[Sequence[Row]]]:
        self.ways.append("stream")
        async with self._database.stream(query, *arguments, batch=batch, documents=documents) as batches:

            async def counted() -> AsyncGenerator[Sequence[Row]]:
                async for rows in batches:
                    yield self.count(rows)

            yield counted()
