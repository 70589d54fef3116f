"""Rows of the original are our records, and ours are its rows: the same documents, the same instants.

The original runs in another time zone than ours and the server, so a date that either takes for local time shows.
"""

import json
from datetime import datetime
from typing import Any

import pytest

from tests.support.original import Generation, Original, OriginalError, Originals, originals
from tests.support.served import Serving, serving
from tests.support.shapes import postgres_sql

pytestmark = pytest.mark.anyio

DOCUMENTS: dict[str, dict[str, Any]] = {
    "empty": {},
    "plain": {"name": "Env", "port": 3001, "routes": [], "enabled": True, "parent": None},
    "unicode": {"name": "Env é \U0001f600 \u2028", "\uff61": 1, "quotes": 'it\'s "so" \\ `$1`'},
    "numbers": {"a": 1e21, "b": 0.1, "c": -1.5e-7, "d": 2**53 - 1, "e": 5e-324, "f": 1.7976931348623157e308},
    "keys": {"10": 1, "9": 2, "b": 3, "a": 4, "1b": 5, "": 6, "constructor": 7},
    "nested": {"a": [[[]], {"b": [{"c": {}}]}, [None, False, "", 0]]},
    "large": {"routes": [{"uuid": f"{number}", "body": "x" * 900} for number in range(100)]},
}
NOT_IN_JSONB: dict[str, dict[str, Any]] = {"nul": {"a": "\0"}, "surrogate": {"a": "\ud800"}}
NO_OBJECTS: dict[str, Any] = {"null": None, "array": [1], "text": "text", "number": 5, "boolean": True, "digits": "5"}
MOMENTS = (
    "1969-12-31T23:59:59.999Z",
    "2000-02-29T00:00:00.000Z",
    "2025-03-30T01:30:00.001Z",
    "2025-05-27T08:54:47.120Z",
    "9999-12-31T23:59:59.999Z",
)


def document(uuid: str, **members: Any) -> dict[str, Any]:
    return {"uuid": uuid, **members}


def as_javascript(value: Any) -> Any:
    """Numbers as JavaScript has them, all of one kind."""
    if isinstance(value, dict):
        return {key: as_javascript(one) for key, one in value.items()}
    if isinstance(value, list):
        return [as_javascript(one) for one in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def facts(row: dict[str, Any], *, timestamp: bool = True) -> dict[str, Any]:
    """What a row and a record have in common, however each side types it."""
    names = ("id", "environmentUuid", "createdAt", "updatedAt")
    found = {name: row[name] for name in names} | {"deletedAt": row.get("deletedAt")}
    return {**found, "timestamp": int(row["timestamp"]), "environment": as_javascript(row["environment"])}


async def exported(service: Serving, **params: Any) -> list[Any]:
    text = b"".join([chunk async for chunk in await service.ask("export", **params)])
    return [json.loads(line) for line in text.splitlines()]


async def assert_same(service: Serving, original: Original) -> None:
    """Both see the same live and the same deleted rows, by every way of reading there is."""
    own = await original.find_all()
    live = [row for row in own.values() if row.get("deletedAt") is None]
    deleted = [row for row in own.values() if row.get("deletedAt") is not None]
    assert await original.find_all(paranoid=False) == own
    assert await original.find_all(paranoid=True) == {row["id"]: row for row in live}
    for action, params, rows in (("list", {"deleted": False}, live), ("listDeleted", {"deleted": True}, deleted)):
        records = await service.ask(action)
        expected = {row["id"]: facts(row) for row in rows}
        assert {record["id"]: facts(record) for record in records} == expected
        assert {record["id"]: facts(record) for record in await exported(service, **params)} == expected
    for row in live:
        assert facts(await service.ask("get", uuid=row["id"])) == facts(row)
        assert await original.do("findByPk", id=row["id"], paranoid=True) == row
    for row in deleted:
        assert (await service.failure("get", uuid=row["id"])).code == 404
        assert await original.do("findByPk", id=row["id"], paranoid=True) is None
        assert await original.do("findByPk", id=row["id"], paranoid=False) == row
    stats = await service.ask("stats")
    assert (stats["total"], stats["active"], stats["deleted"]) == (len(own), len(live), len(deleted))


@pytest.mark.parametrize("generation", ["A", "B", "C", "D"])
async def test_what_each_generation_wrote_is_what_we_read(
    generation: Generation, database_url: str, original_process: Originals
) -> None:
    if generation == "A" and database_url.startswith("sqlite"):
        generation = "B"  # there was no SQLite before; a file that was started twice has another table
    original = await original_process.open(generation, database_url)
    await original.start()
    documents = DOCUMENTS | ({} if generation == "A" else NOT_IN_JSONB)
    for name, members in documents.items():
        await original.save(id=name, environment=document(name, **members), timestamp=1748340000124)
    for number, moment in enumerate(MOMENTS):
        row = {"environmentUuid": f"moment {number}", "timestamp": number, "createdAt": moment, "updatedAt": moment}
        await original.do("create", row={"id": f"moment {number}", "environment": document("moment"), **row})
    assert await original.do("update", id="plain", environment=document("plain", version=2)) == 1
    await original.do("remove", id="keys")
    await original.start()
    before = await original.find_all()

    async with serving(database_url) as service:
        await service.until_state("ready", steps=True)
        newest = await original_process.open("D", database_url)
        after = await newest.find_all()
        assert {uuid: facts(row) for uuid, row in after.items()} == {uuid: facts(row) for uuid, row in before.items()}
        assert set(after) == {*documents, *(f"moment {number}" for number in range(len(MOMENTS)))} - (
            {"keys"} if generation != "D" else set()
        )
        await assert_same(service, newest)


async def test_the_trash_of_the_original_is_ours_with_its_dates(database_url: str, original_process: Originals) -> None:
    original = await original_process.open("D", database_url)
    await original.start()
    for number, moment in enumerate(MOMENTS):
        await original.save(id=f"{number}", environment=document(f"{number}"), deletedAt=moment)
    for uuid in ("removed", "restored", "paranoid", "destroyed", "gone"):
        await original.save(id=uuid, environment=document(uuid))
    for uuid in ("removed", "restored"):
        assert await original.do("remove", id=uuid) == 1
    assert await original.do("restore", id="restored") == 1
    await original.do("paranoidDestroy", id="paranoid")
    await original.do("destroy", id="gone")

    async with serving(database_url) as service:
        await assert_same(service, original)
        deleted = {
            record["id"]: record["deletedAt"] for record in await service.ask("listDeleted", fields=["id", "deletedAt"])
        }
        assert {uuid: deleted[uuid] for uuid in deleted if uuid.isdigit()} == {
            f"{number}": moment for number, moment in enumerate(MOMENTS)
        }
        assert set(deleted) == {*map(str, range(len(MOMENTS))), "removed", "paranoid"}
        # Those of the last days, and the one of the year 9999.
        assert (await service.ask("stats"))["recentlyDeleted"] == 3
        for uuid in deleted:
            assert await service.ask("restore", uuid=uuid) == {"success": True}
        await assert_same(service, original)
        assert (await service.ask("stats"))["deleted"] == 0


async def test_what_we_write_is_what_the_original_reads(database_url: str, original_process: Originals) -> None:
    original = await original_process.open("D", database_url)
    async with serving(database_url) as service:
        documents = DOCUMENTS | NOT_IN_JSONB | {"big": {"a": 12345678901234567890}, "dunder": {"__proto__": {"x": 1}}}
        for name, members in documents.items():
            await service.ask("create", environment=document(name, **members))
        for name in documents:
            await service.ask("update", uuid=name, environment=document(name, **documents[name], version=2))
        for name in ("unicode", "numbers", "large", "nul", "nested"):
            await service.ask("remove", uuid=name)
        for name in ("numbers", "large"):
            await service.ask("restore", uuid=name)
        await service.ask("permanentDelete", uuid="nul")
        await assert_same(service, original)
        rows = await original.find_all()
        assert set(rows) == set(documents) - {"nul"}
        for name, row in rows.items():
            assert as_javascript(row["environment"]) == as_javascript(document(name, **documents[name], version=2))
            assert abs(int(row["timestamp"]) - milliseconds(row["createdAt"])) < 600_000
            assert row["deletedAt"] in (None, row["updatedAt"])

        await original.start()  # it finds nothing to add, and everything as it was
        assert await original.find_all() == rows
        await assert_same(service, original)


async def test_both_change_the_same_rows_in_turn(database_url: str, original_process: Originals) -> None:
    original = await original_process.open("D", database_url)
    async with serving(database_url) as service:
        for version in range(10):
            if version == 0:
                record = await service.ask("create", environment=document("U", version=version))
            elif version % 2:
                await original.save(id="U", environment=document("U", version=version))
            else:
                record = await service.ask("update", uuid="U", environment=document("U", version=version))
            assert (await service.ask("get", uuid="U"))["environment"] == document("U", version=version)
            assert (await original.do("findByPk", id="U"))["environment"] == document("U", version=version)
        # Its writes change the tag, so a caller that holds an older one overwrites nothing.
        changed = await service.failure("update", uuid="U", environment=document("U"), ifHash=record["hash"])
        assert changed.type == "ENVIRONMENT_CHANGED"

        for remove, restore in (("remove", "restore"), ("paranoidDestroy", "paranoidRestore")):
            await service.ask("remove", uuid="U")
            await original.do(restore, id="U")
            assert (await service.ask("get", uuid="U"))["deletedAt"] is None
            await original.do(remove, id="U")
            assert (await service.failure("get", uuid="U")).code == 404
            assert await service.ask("restore", uuid="U") == {"success": True}
            await assert_same(service, original)
        await original.do("destroy", id="U")
        assert (await service.failure("remove", uuid="U")).code == 404


async def test_the_hazard_of_the_original_that_its_upsert_revives_what_we_removed(
    database_url: str, original_process: Originals
) -> None:
    original = await original_process.open("D", database_url)
    async with serving(database_url) as service:
        await service.ask("create", environment=document("U"))
        await service.ask("remove", uuid="U")
        error = await service.failure("create", environment=document("U"))
        assert error.type == "ENVIRONMENT_DELETED"
        assert (await service.failure("update", uuid="U", environment=document("U"))).code == 404
        await original.save(id="U", environment=document("U", by="the original"))
        assert [record["environment"]["by"] for record in await service.ask("list")] == ["the original"]
        assert await service.ask("listDeleted") == []


async def test_documents_that_are_no_objects_are_left_as_they_are_and_told(
    database_url: str, original_process: Originals
) -> None:
    original = await original_process.open("D", database_url)
    await original.start()
    for name, value in NO_OBJECTS.items():
        await original.save(id=name, environment=value)
    async with serving(database_url) as service:
        await service.ask("create", environment=document("U"))
        documents = {record["id"]: record["environment"] for record in await service.ask("list")}
        assert documents == {**dict.fromkeys(NO_OBJECTS), "U": document("U")}
        for name in NO_OBJECTS:
            assert any(f"'{name}' is damaged" in line for line in service.lines)
            await service.ask("remove", uuid=name)
            await service.ask("restore", uuid=name)
        assert {uuid: row["environment"] for uuid, row in (await original.find_all()).items()} == {
            **NO_OBJECTS,
            "U": document("U"),
        }


async def test_a_column_by_the_guide_s_sql_holds_the_same_instants_for_an_original_in_utc(
    postgres_url: str, postgres_database: Any, sequelize_modules: object
) -> None:
    postgres_database.run_sql(postgres_sql("p_man"))
    async with serving(postgres_url) as service:
        await service.ask("create", environment=document("U"))
        await service.ask("remove", uuid="U")
        async with originals(zone="UTC") as process:
            original = await process.open("D", postgres_url)
            await assert_same(service, original)
            row = await original.do("findByPk", id="U")
            assert row["deletedAt"] == row["updatedAt"]  # one moment, in a column with a zone and in one without
            await original.save(id="V", environment=document("V"), deletedAt=MOMENTS[3])
            await assert_same(service, original)
        # The hazard of the original: in another zone it reads such a date as its own wall time.
        async with originals(zone="Asia/Bangkok") as process:
            elsewhere = await (await process.open("D", postgres_url)).find_all()
            assert elsewhere["V"]["deletedAt"] == "2025-05-27T01:54:47.120Z"
            records = {record["id"]: record["deletedAt"] for record in await service.ask("listDeleted")}
            assert records["V"] == MOMENTS[3]


async def test_jsonb_refuses_what_it_cannot_hold_from_the_original_and_from_us(
    postgres_url: str, original_process: Originals
) -> None:
    original = await original_process.open("A", postgres_url)
    await original.start()
    async with serving(postgres_url) as service:
        for members in NOT_IN_JSONB.values():
            with pytest.raises(OriginalError):
                await original.save(id="U", environment=document("U", **members))
            assert (await service.failure("create", environment=document("U", **members))).code == 422
        assert await service.ask("list") == []


def milliseconds(iso: str) -> int:
    return int(datetime.fromisoformat(iso).timestamp() * 1000)
