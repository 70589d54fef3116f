"""Without the column everything else works, and nothing is ever deleted for want of it."""

from typing import Any

import msgspec
import pytest

from services.environments_store.errors import SoftDeleteUnavailableError
from services.environments_store.listing import ListRequest
from services.environments_store.schema.status import SchemaStatus
from tests.support.store import Bench, read

pytestmark = pytest.mark.anyio

without = pytest.mark.parametrize("bench", ["sqlite without deletedAt", "postgresql without deletedAt"], indirect=True)
with_column = pytest.mark.parametrize("bench", ["sqlite", "postgresql"], indirect=True)


@without
async def test_every_row_counts_as_live(bench: Bench) -> None:
    record = await bench.create("U", name="first")
    assert record["deletedAt"] is None
    assert read(await bench.store.get("U")) == record
    updated = read((await bench.store.update("U", b'{"uuid":"U","name":"second"}', record["hash"])).record)
    assert await bench.list() == [updated]
    assert await bench.list(limit=1, fields=("id", "deletedAt")) == [{"id": "U", "deletedAt": None}]
    assert await bench.list(after="U") == []
    assert await bench.store.stats(7) == {"total": 1, "active": 1, "deleted": 0, "recentlyDeleted": 0}


@without
@pytest.mark.parametrize("operation", ["remove", "list_deleted", "restore", "permanent_delete", "force"])
async def test_soft_delete_is_refused_with_the_reason_and_deletes_nothing(bench: Bench, operation: str) -> None:
    record = await bench.create("U")
    with pytest.raises(SoftDeleteUnavailableError) as caught:
        await soft_delete(bench, operation)
    error = caught.value
    assert (error.code, error.type, error.retryable) == (503, "SOFT_DELETE_UNAVAILABLE", True)
    assert error.data == {"state": "degraded", "reason": bench.status.reason}
    assert bench.status.public is not None
    assert bench.status.public in str(error)
    assert await bench.list() == [record]


@without
async def test_while_the_column_is_being_added_the_answer_says_so(bench: Bench) -> None:
    bench.status = SchemaStatus(state="migrating", dialect=bench.status.dialect)
    with pytest.raises(SoftDeleteUnavailableError) as caught:
        await bench.list_deleted()
    assert caught.value.data == {"state": "migrating", "reason": "migrating"}


@without
async def test_it_heals_without_a_restart(bench: Bench) -> None:
    await bench.create("U")
    kind = "DATETIME" if bench.is_sqlite else "TIMESTAMPTZ"
    name = "deletedAt" if bench.is_sqlite else '"deletedAt"'
    await bench.run(f"ALTER TABLE environments ADD COLUMN {name} {kind}")
    bench.status = msgspec.structs.replace(bench.status, state="ready", soft_delete=True)
    await bench.store.remove("U")
    assert [record["id"] for record in await bench.list_deleted()] == ["U"]
    assert await bench.list() == []


@with_column
@pytest.mark.parametrize(
    "operation", ["remove", "list_deleted", "restore", "permanent_delete", "get", "list", "create", "update", "stats"]
)
async def test_a_column_that_vanishes_is_reported_and_nothing_is_lost(bench: Bench, operation: str) -> None:
    await bench.create("U", name="first")
    await bench.run(
        f"ALTER TABLE environments DROP COLUMN {'deletedAt' if bench.is_sqlite else chr(34) + 'deletedAt' + chr(34)}"
    )
    with pytest.raises(SoftDeleteUnavailableError) as caught:
        await soft_delete(bench, operation)
    assert caught.value.data == {"reason": "lost"}
    assert caught.value.retryable
    assert bench.missing_columns == 1
    bench.status = msgspec.structs.replace(bench.status, state="degraded", reason="lost", soft_delete=False)
    [record] = await bench.list()
    assert record["environment"] == {"uuid": "U", "name": "first"}


async def soft_delete(bench: Bench, operation: str) -> Any:
    document = b'{"uuid":"%s","name":"second"}'
    match operation:
        case "force":
            return await bench.store.permanent_delete("U", force=True)
        case "list":
            return await bench.store.list(ListRequest())
        case "list_deleted":
            return await bench.store.list_deleted(ListRequest())
        case "create":
            return await bench.store.create(document % b"V")
        case "update":
            return await bench.store.update("U", document % b"U")
        case "stats":
            return await bench.store.stats(7)
    return await getattr(bench.store, operation)("U")
