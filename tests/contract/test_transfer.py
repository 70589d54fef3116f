"""Export and import: what goes out comes in again as it was, byte for byte, or nothing does."""

import contextlib
import hashlib
import io
import json
import sqlite3
import time
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import pytest

from services.environments_store.database.postgres import PostgresDatabase
from services.environments_store.defaults import DatabaseSettings, OperationLimits
from services.environments_store.errors import ImportRefusedError, SoftDeleteUnavailableError
from services.environments_store.operations.exporting import Export
from services.environments_store.operations.importing import Import, OnConflict
from services.environments_store.operations.line_files import file_lines, spooled_lines
from tests.support.operations import LOGGER, TRASHABLE, exported, fill, imported, ndjson, shape_of
from tests.support.store import Bench

pytestmark = pytest.mark.anyio
with_column = pytest.mark.parametrize("bench", TRASHABLE, indirect=True)
both = pytest.mark.parametrize("bench", ["sqlite", "postgresql"], indirect=True)
DOCUMENTS = {
    "plain": b'{"uuid":"plain","name":"Env \xc3\xa9 \xf0\x9f\x98\x80"}',
    "spaces": b' { "uuid" : "spaces" ,  "b":1, "a":2 } ',
    "numbers": b'{"uuid":"numbers","a":1e21,"b":1.0,"c":-0,"d":12345678901234567890}',
    "breaks": b'{\n  "uuid": "breaks",\r\n  "text": "a \\n break"\n}\n',
    "twice": b'{"uuid":"twice","a":1,"a":2}',
    "surrogate": b'{"uuid":"surrogate","a":"\\ud800"}',
    "nul": b'{"uuid":"nul","a":"\\u0000"}',
    "huge": b'{"uuid":"huge","a":1e400}',
    "deep": b'{"uuid":"deep","a":' + b"[" * 499 + b"]" * 499 + b"}",
}


@both
async def test_everything_comes_back_byte_for_byte(bench: Bench) -> None:
    for document in DOCUMENTS.values():
        await bench.store.create(document)
    for uuid in ("plain", "breaks", "deep"):
        await bench.store.remove(uuid)
    before = await exported(bench)
    texts = {uuid: await bench.stored_text(uuid) for uuid in DOCUMENTS}
    assert {uuid: text.encode() for uuid, text in texts.items()} == DOCUMENTS
    assert len(before) == len(DOCUMENTS)
    await bench.run("DELETE FROM environments")
    assert await imported(bench, io.BytesIO(b"\n".join(before))) == (len(DOCUMENTS), 0, 0)
    assert await exported(bench) == before
    assert {uuid: await bench.stored_text(uuid) for uuid in DOCUMENTS} == texts
    trash = {record["id"] for record in await bench.list_deleted(fields=("id",))}
    assert trash == {"plain", "breaks", "deep"}


@both
async def test_a_pretty_printed_document_stands_once_in_its_line(bench: Bench) -> None:
    document = json.dumps({"uuid": "U", "routes": [{"uuid": f"r{n}", "body": "x" * n} for n in range(99)]}, indent=2)
    await bench.store.create(document.replace("\n", "\r\n", 9).encode())
    text = await bench.stored_text("U")
    [line] = await exported(bench)
    assert len(line) < 1.5 * len(text)
    edited = line.replace(b"xxxx", b"yyy")
    old = json.dumps({"id": "U", "environment": None, "environmentText": text}).encode()
    for again, stored in ((line, text), (old, text), (edited, None)):
        await imported(bench, io.BytesIO(again), "replace")
        assert stored is None or await bench.stored_text("U") == stored
    assert "yyy" in (await bench.list())[0]["environment"]["routes"][4]["body"]


@both
async def test_the_space_around_a_document_is_kept_however_much_it_is(bench: Bench) -> None:
    sizes = {"U": 3, "V": 65_536, "W": 99_999}
    texts = {uuid: " " * size + json.dumps({"uuid": uuid}) + "\n" * size for uuid, size in sizes.items()}
    for uuid, text in texts.items():
        await bench.create(uuid)
        await bench.run(f"UPDATE environments SET environment = '{text}' WHERE id = '{uuid}'")
    lines = await exported(bench)
    await imported(bench, io.BytesIO(b"\n".join(lines)), "replace")
    assert {uuid: await bench.stored_text(uuid) for uuid in texts} == texts


@both
async def test_large_documents_stand_in_their_place_and_are_of_the_same_moment(bench: Bench) -> None:
    sizes = [10, 100_000, 20, 70_000, 2_000_000, 30]
    records = [await bench.create(str(number), text="é" * size) for number, size in enumerate(sizes)]
    export = Export(bench.database, shape_of(bench), LOGGER)
    text = b""
    async for chunk in export.chunks("live"):
        if not text:
            await bench.store.update("4", b'{"uuid":"4","text":"changed"}')
            await bench.store.permanent_delete("3", force=True)
        text += chunk
    assert [json.loads(line) for line in text.splitlines()] == records
    assert [record["id"] for record in await bench.list(limit=3)] == ["0", "1", "2"]
    assert (await bench.list(limit=2))[1] == records[1]


@pytest.mark.parametrize("bench", ["sqlite"], indirect=True)
@pytest.mark.parametrize("form", ["TABLE environments AS SELECT", "VIEW environments AS SELECT", "WITHOUT ROWID"])
async def test_large_documents_are_exported_from_every_form_of_table(bench: Bench, form: str) -> None:
    sizes = [100_000, 10, 70_000]
    records = [await bench.create(str(number), text="é" * size) for number, size in enumerate(sizes)]
    made = await bench.database.fetch_one("SELECT sql FROM sqlite_master WHERE name = 'environments'")
    assert made is not None
    await bench.run("ALTER TABLE environments RENAME TO original")
    if form == "WITHOUT ROWID":
        await bench.run(f"{made['sql']} {form}")
        await bench.run("INSERT INTO environments SELECT * FROM original")
    else:
        await bench.run(f"CREATE {form} * FROM original")
    assert [json.loads(line) for line in await exported(bench)] == records


@both
async def test_an_export_holds_one_large_document_at_a_time(bench: Bench) -> None:
    for number in range(10):
        await bench.create(str(number), text=str(number) * 1_000_000)
    tracemalloc.start()
    try:
        export = Export(bench.database, shape_of(bench), LOGGER)
        lines = [chunk.count(b"\n") async for chunk in export.chunks("live")]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(lines) == 10
    assert peak < 6 * 1_000_000


@both
async def test_four_exports_at_once_hold_a_few_times_the_largest_document(bench: Bench) -> None:
    size = 3_000_000
    for uuid in "UVW":
        await bench.create(uuid, text="plain text, and a 😀 " * (size // 23))
    exports = [Export(bench.database, shape_of(bench), LOGGER) for _ in range(4)]

    async def read(export: Export) -> None:
        async for _ in export.chunks("live"):
            pass

    tracemalloc.start()
    try:
        async with anyio.create_task_group() as readers:
            for export in exports:
                readers.start_soon(read, export)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [export.exported for export in exports] == [3] * 4
    assert peak < 8 * size


@with_column
async def test_a_line_is_the_record_that_the_actions_answer_with(bench: Bench) -> None:
    record = await bench.create("one", name="first")
    await bench.create("two")
    await bench.store.remove("two")
    assert [json.loads(line) for line in await exported(bench, "live")] == [record]
    assert [json.loads(line) for line in await exported(bench, "deleted")] == await bench.list_deleted()
    assert {json.loads(line)["id"] for line in await exported(bench, "all")} == {"one", "two"}


@with_column
async def test_dates_and_the_timestamp_come_in_as_they_are(bench: Bench) -> None:
    line = {
        "id": "U",
        "environment": {"uuid": "U"},
        "timestamp": 1748340000124,
        "createdAt": "2025-05-27T10:00:00.124Z",
        "updatedAt": "2025-05-28T10:00:00.125Z",
        "deletedAt": "2025-05-29T10:00:00.126Z",
    }
    await imported(bench, ndjson(line))
    [record] = await bench.list_deleted()
    assert {key: record[key] for key in line} == line
    await bench.store.restore("U")
    assert [record["id"] for record in await bench.list()] == ["U"]


@with_column
async def test_a_document_alone_is_enough(bench: Bench) -> None:
    assert await imported(bench, ndjson({"environment": {"uuid": "U", "name": "by hand"}})) == (1, 0, 0)
    [record] = await bench.list()
    assert record["id"] == record["environmentUuid"] == "U"
    assert record["environment"] == {"uuid": "U", "name": "by hand"}
    assert record["createdAt"] == record["updatedAt"]
    assert record["deletedAt"] is None
    assert record["timestamp"] > 1_700_000_000_000


@with_column
@pytest.mark.parametrize(
    ("on_conflict", "outcome", "name"), [("skip", (1, 2, 0), "mine"), ("replace", (1, 0, 2), "theirs")]
)
async def test_what_is_there_is_kept_or_replaced_as_asked(
    bench: Bench, on_conflict: OnConflict, outcome: tuple[int, int, int], name: str
) -> None:
    await bench.create("live", name="mine")
    await bench.create("trash", name="mine")
    await bench.store.remove("trash")
    lines = ndjson(*({"environment": {"uuid": uuid, "name": "theirs"}} for uuid in ("live", "trash", "new")))
    assert await imported(bench, lines, on_conflict) == outcome
    documents = {record["id"]: record["environment"]["name"] for record in map(json.loads, await exported(bench))}
    assert documents == {"live": name, "trash": name, "new": "theirs"}
    assert len(await bench.list_deleted()) == (1 if on_conflict == "skip" else 0)


@with_column
@pytest.mark.parametrize("taken", ["live", "trash"])
async def test_fail_names_the_first_line_that_is_there_and_stores_nothing(bench: Bench, taken: str) -> None:
    await bench.create(taken)
    if taken == "trash":
        await bench.store.remove(taken)
    before = await exported(bench)
    lines = ndjson(*({"environment": {"uuid": uuid}} for uuid in ("a", "b", taken, "c")))
    with pytest.raises(ImportRefusedError) as caught:
        await imported(bench, lines, "fail")
    assert caught.value.data["line"] == 3
    assert f"'{taken}' exists already" in str(caught.value)
    assert await exported(bench) == before


@with_column
async def test_an_id_twice_in_one_import_is_a_conflict_with_itself(bench: Bench) -> None:
    lines = [{"environment": {"uuid": "U", "number": number}} for number in range(3)]
    assert await imported(bench, ndjson(*lines), "replace") == (1, 0, 2)
    assert (await bench.list())[0]["environment"]["number"] == 2
    assert await imported(bench, ndjson(*lines), "skip") == (0, 3, 0)
    await bench.run("DELETE FROM environments")
    with pytest.raises(ImportRefusedError) as caught:
        await imported(bench, ndjson(*lines), "fail")
    assert caught.value.data["line"] == 2


BAD = {
    "no JSON": (b"{nonsense\n", "does not end"),
    "no object": (b"[1]\n", "not a JSON object"),
    "cut off": (b'{"environment":{"uuid":"x"', "does not end"),
    "no environment": (b'{"id":"x"}\n', "no 'environment'"),
    "an array": (b'{"id":"x","environment":[1]}\n', "must be an object"),
    "null": (b'{"id":"x","environment":null}\n', "must be an object"),
    "not UTF-8": (b'{"environment":{"uuid":"x","a":"\xff"}}\n', "UTF-8"),
    "no id": (b'{"environment":{"uuid":null}}\n', "'id' must be a string"),
    "nothing of ours": (b'{"x":1}\n', "expected a record {environment"),
    "a route": (b'{"source":"m","data":[{"type":"route","item":{}}]}\n', "data[0] is of the type 'route'"),
    "a bad item": (b'{"source":"m","data":[{"type":"environment","item":{"uuid":7}}]}\n', "data[0]: the 'id' must be"),
    "data of another form": (b'{"source":"m","data":7}\n', "'data' is of another form; expected"),
    "an id that is none": (b'{"id":7,"environment":{}}\n', "'id' must be a string"),
    "an empty id": (b'{"id":"","environment":{}}\n', "must not be empty"),
    "a long id": (b'{"id":"%s","environment":{}}\n' % (b"x" * 256), "longer than 255"),
    "a bad date": (b'{"environment":{"uuid":"x"},"deletedAt":"yesterday"}\n', "'deletedAt' is not a date: 'yesterday'"),
    "an impossible date": (b'{"environment":{"uuid":"x"},"createdAt":"2025-02-30T00:00:00.000Z"}\n', "not a date"),
    "a date that is true": (b'{"environment":{"uuid":"x"},"deletedAt":true}\n', "not a date"),
    "a bad timestamp": (b'{"environment":{"uuid":"x"},"timestamp":"now"}\n', "'timestamp' is not a number"),
    "a bad text": (b'{"environment":{"uuid":"x"},"environmentText":7}\n', "'environmentText' is not text"),
    "too deep": (b'{"environment":{"uuid":"x","a":%s%s}}\n' % (b"[" * 500, b"]" * 500), "nested deeper"),
}


@both
async def test_a_bad_line_is_named_with_the_reason_and_nothing_is_stored(bench: Bench) -> None:
    good = [{"environment": {"uuid": f"good-{number}"}} for number in range(600)]  # more than one statement takes
    for line, reason in BAD.values():
        with pytest.raises(ImportRefusedError) as caught:
            await imported(bench, ndjson(*good, b"\n", line))
        assert caught.value.data["line"] == 602
        assert reason in caught.value.data["reason"]
        assert str(caught.value).startswith("Line 602: ")
        assert str(caught.value).endswith("Nothing was imported.")
        assert await exported(bench) == []
    assert await imported(bench, ndjson(*good)) == (600, 0, 0)


@pytest.mark.parametrize("bench", ["postgresql with jsonb"], indirect=True)
async def test_a_line_that_only_the_database_refuses_is_named_too(bench: Bench) -> None:
    lines = ndjson({"environment": {"uuid": "a"}}, b'{"environment":{"uuid":"b","x":"\\u0000"}}\n')
    with pytest.raises(ImportRefusedError) as caught:
        await imported(bench, lines)
    assert caught.value.data["line"] == 2
    assert await exported(bench) == []


PRETTY = json.dumps({"uuid": "U", "name": "é", "data": [], "routes": [{"uuid": ""}]}, indent=2).encode()
FORMS = {
    "a pretty-printed document": (b"\xef\xbb\xbf\n" + PRETTY + b"\n", [PRETTY]),
    "its first line with more than a bracket": (b"{ " + PRETTY[1:], [b"{ " + PRETTY[1:]]),
    "a document in a line": (json.dumps(json.loads(PRETTY)).encode(), [json.dumps(json.loads(PRETTY)).encode()]),
    "documents in lines": (b'{"uuid":"U"}\n{"uuid":"V","a":1.0}', [b'{"uuid":"U"}', b'{"uuid":"V","a":1.0}']),
    "a pretty-printed record": (b'{\n"environment": %s\n}\n' % PRETTY, [PRETTY]),
    "half of a surrogate pair": (b'{\n"uuid":"U",\n"a":"\\ud800"}', [b'{\n"uuid":"U",\n"a":"\\ud800"}']),
    "mockoon's samples": (
        b'{\n"source": "mockoon:1.8.0",\n"data": [\n{"type": "environment", "item": %s},'
        b'{"type": "environment", "item": {"uuid":"V"}}]}' % PRETTY,
        [PRETTY, b'{"uuid":"V"}'],
    ),
}


@both
@pytest.mark.parametrize("form", FORMS)
async def test_a_file_is_taken_in_each_form_byte_for_byte(bench: Bench, form: str) -> None:
    text, documents = FORMS[form]
    assert await imported(bench, io.BytesIO(text)) == (len(documents), 0, 0)
    stored = [(await bench.stored_text(json.loads(document)["uuid"])).encode() for document in documents]
    assert stored == documents


@both
async def test_a_file_that_is_neither_lines_nor_one_document_is_refused_with_what_is_expected(bench: Bench) -> None:
    limits = OperationLimits(line_bytes=len(PRETTY))
    for text, reason in (
        (PRETTY[:-1], "or something follows it; expected"),
        (PRETTY + b"\n" + PRETTY, "or something follows it; expected"),
        (PRETTY + b" ", f"which may have {len(PRETTY)} bytes"),
    ):
        with pytest.raises(ImportRefusedError) as caught:
            await Import(bench.database, shape_of(bench), limits=limits if text.endswith(b" ") else None).run(
                io.BytesIO(text)
            )
        assert caught.value.data["line"] == 1
        assert reason in caught.value.data["reason"]


@both
async def test_a_uuid_is_made_for_records_without_one(bench: Bench) -> None:
    lines = ndjson({"environment": {"name": "none"}}, {"environment": {"name": "empty", "uuid": ""}}, {"name": "alone"})
    work = Import(bench.database, shape_of(bench))
    assert await work.run(lines) == (3, 0, 0)
    records = {record["id"]: record["environment"] for record in await bench.list()}
    assert len(records) == 3
    assert all(UUID(id).version == 4 and document["uuid"] == id for id, document in records.items())
    assert {change.uuid async for changes in work.changes(lines) for change in changes} == set(records)
    assert await imported(bench, ndjson({"id": "I", "environment": {"uuid": "", "a": 1}})) == (1, 0, 0)
    assert json.loads(await bench.stored_text("I")) == {"uuid": "", "a": 1}


@both
async def test_empty_lines_and_a_byte_order_mark_are_passed_over(bench: Bench) -> None:
    lines = io.BytesIO(b'\xef\xbb\xbf{"environment":{"uuid":"a"}}\r\n\n  \n{"environment":{"uuid":"b"}}')
    assert await imported(bench, lines) == (2, 0, 0)
    assert await imported(bench, io.BytesIO(b"")) == (0, 0, 0)


@pytest.mark.parametrize("bench", ["sqlite without deletedAt", "postgresql without deletedAt"], indirect=True)
async def test_without_the_column_live_records_come_in_and_deleted_ones_do_not(bench: Bench) -> None:
    live, deleted = {"environment": {"uuid": "a"}}, {"environment": {"uuid": "b"}, "deletedAt": "2025-05-29"}
    with pytest.raises(SoftDeleteUnavailableError):
        await imported(bench, ndjson(live, deleted))
    assert await exported(bench, "live") == []
    assert await imported(bench, ndjson(live)) == (1, 0, 0)
    assert len(await exported(bench, "live")) == len(await exported(bench, "all")) == 1
    with pytest.raises(SoftDeleteUnavailableError):
        await exported(bench, "deleted")


@both
async def test_a_damaged_row_is_exported_without_its_document_and_not_imported(bench: Bench) -> None:
    await bench.create("a good one")
    await bench.create("bad")
    await bench.run("UPDATE environments SET environment = NULL WHERE id = 'bad'")
    lines = await exported(bench)
    assert [(record["id"], record["environment"] is None) for record in map(json.loads, lines)] == [
        ("a good one", False),
        ("bad", True),
    ]
    with pytest.raises(ImportRefusedError, match="Line 2: the 'environment' must be an object"):
        await imported(bench, io.BytesIO(b"\n".join(lines)))


@pytest.mark.parametrize("bench", ["sqlite"], indirect=True)
async def test_others_write_the_file_while_an_import_reads_its_lines(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.create("theirs")
    lines = ndjson(*({"environment": {"uuid": f"{number}"}} for number in range(1_700)))
    place = await bench.database.fetch("PRAGMA database_list")
    with contextlib.closing(sqlite3.connect(place[0]["file"], timeout=0, isolation_level=None)) as other:
        seen: list[tuple[str, str]] = []

        def look(phase: str, done: int) -> None:
            if phase == "store":
                assert done <= 1_700
                assert lines.tell() == len(lines.getvalue()), "no line is read while others wait"
                assert "in one transaction" in caplog.text
            try:
                other.execute("UPDATE environments SET timestamp = 1 WHERE id = 'theirs'")
                seen.append((phase, "written"))
            except sqlite3.OperationalError as error:
                seen.append((phase, str(error)))

        limits = OperationLimits(told_import_bytes=10_000)
        assert await Import(bench.database, shape_of(bench), limits=limits).run(lines, look) == (1_700, 0, 0)
    assert seen == [("check", "written")] * 4 + [("store", "database is locked")] * 4
    async with bench.database.transaction() as connection:
        assert await connection.fetch("SELECT name FROM temp.sqlite_master") == [], "the staging table is dropped"


class SlowToReadAgain(io.BytesIO):
    """A file whose second reading, which is within the transaction, takes longer than transactions may be idle."""

    readings = 0

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self.readings += 1
        return super().seek(offset, whence)

    def readline(self, size: int | None = -1, /) -> bytes:
        time.sleep(0.5 if self.readings > 1 else 0)
        return super().readline(size)


@pytest.mark.parametrize("bench", ["postgresql"], indirect=True)
async def test_a_line_that_takes_long_to_read_does_not_end_the_transaction(bench: Bench, postgres_url: str) -> None:
    database = PostgresDatabase(postgres_url, DatabaseSettings(idle_in_transaction_timeout_s=0.1))
    try:
        lines = SlowToReadAgain(ndjson({"environment": {"uuid": "U"}}, {"environment": {"uuid": "U", "a": 1}}).read())
        assert await Import(database, shape_of(bench)).run(lines) == (1, 1, 0)
    finally:
        await database.close()


@pytest.mark.parametrize("megabytes", [1, pytest.param(50, marks=pytest.mark.long)])
@both
async def test_a_large_document_is_imported_byte_for_byte(bench: Bench, megabytes: int) -> None:
    route = '{"uuid": "r", "body": "lorem \\"ipsum\\" é 😀", "n": [1, 22, 3.5, {}]}'
    body = ",".join([route] * (megabytes * 1_000_000 // len(route.encode())))
    documents = [f'{{"uuid":"{uuid}","routes":[{body}]}}' for uuid in ("first", "second")]
    lines = ndjson(*(b'{"environment":%s}\n' % document.encode() for document in documents))
    assert await imported(bench, lines) == (2, 0, 0)
    for document, uuid in zip(documents, ("first", "second"), strict=True):
        assert await bench.stored_text(uuid) == document


@pytest.mark.parametrize("document", [b'{"\\u0075uid":"U","a":"\\ud800"}', b'{"uuid":"a","\\u0075uid":"U"}'])
@both
async def test_the_second_reading_finds_the_uuid_that_the_first_has_checked(bench: Bench, document: bytes) -> None:
    assert await imported(bench, ndjson(b'{"environment":%s}\n' % document)) == (1, 0, 0)
    assert await bench.stored_text("U") == document.decode()


@both
async def test_changes_tell_what_became_of_each_line(bench: Bench) -> None:
    await bench.create("there")
    lines = ndjson(
        {"environment": {"uuid": "there"}},
        {"environment": {"uuid": "new", "a": 1}},
        {"environment": {"uuid": "gone"}, "deletedAt": "2025-05-29T10:00:00.126Z"},
    )
    for on_conflict, expected in {
        "skip": [("created", "new"), ("removed", "gone")],
        "replace": [("updated", "there"), ("updated", "new"), ("removed", "gone")],
    }.items():
        work = Import(bench.database, shape_of(bench), on_conflict="skip" if on_conflict == "skip" else "replace")
        await work.run(lines)
        changes = [change async for changes in work.changes(lines) for change in changes]
        assert [(change.type, change.uuid) for change in changes] == expected
        records = {record["id"]: record["hash"] for record in map(json.loads, await exported(bench))}
        assert all(records[change.uuid] == change.hash for change in changes)


@pytest.mark.parametrize("bench", ["sqlite"], indirect=True)
async def test_a_large_stream_goes_through_a_file_and_a_small_one_through_memory(bench: Bench, tmp_path: Path) -> None:
    await fill(bench, 3_000)
    whole = b"\n".join(await exported(bench))
    (tmp_path / "lines.ndjson").write_bytes(whole)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(whole), 70_001):  # lines are cut anywhere
            yield whole[start : start + 70_001]

    async with spooled_lines(pieces()) as spool, file_lines(tmp_path / "lines.ndjson") as file:
        spool.seek(0)
        assert hashlib.sha256(spool.read()).digest() == hashlib.sha256(whole).digest()
        assert await imported(bench, spool) == (0, 3_000, 0)
        assert await imported(bench, file) == (0, 3_000, 0)

    async def records() -> AsyncIterator[Any]:
        yield {"environment": {"uuid": "as a value"}}
        yield '{"environment":{"uuid":"as text"}}\n'

    async with spooled_lines(records()) as spool:
        assert await imported(bench, spool) == (2, 0, 0)
