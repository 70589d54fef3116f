"""Documents are kept byte for byte, or refused with 422 before anything is written."""

import json
import re
from typing import Any

import pytest

from broker.errors import PayloadTooLargeError, ValidationError
from services.environments_store.canonical import canonical_text, parse
from services.environments_store.hash import content_hash
from tests.support.store import Bench, read

pytestmark = pytest.mark.anyio

on_text = pytest.mark.parametrize(
    "bench", ["sqlite", "postgresql", "postgresql with the guide's TIMESTAMP"], indirect=True
)
on_all = pytest.mark.parametrize("bench", ["sqlite", "postgresql", "postgresql with jsonb"], indirect=True)

UUID = "c0ffee00-0000-4000-8000-000000000001"
KEPT = {
    "spaces and line ends": b' {  "uuid" :\t"U",\r\n "name" : "x" } ',
    "order of keys": b'{"z":1,"uuid":"U","10":2,"9":3,"a":4}',
    "repeated keys": b'{"uuid":"U","a":1,"a":2}',
    "repeated uuid, the last one counts": b'{"uuid":7,"uuid":"V","uuid":"U"}',
    "escaped uuid": b'{"\\u0075uid":"\\u0055"}',
    "numbers as written": b'{"uuid":"U","n":[1.0,1e21,1E+2,-0,0.10,12345678901234567890,1e400,5e-324]}',
    "escapes as written": b'{"uuid":"U","s":"\\u00e9 \\/ \\ud83d\\ude00 \\u2028"}',
    "characters of every plane": '{"uuid":"U","s":"é \u2028 \uffff 😀","😀":1}'.encode(),
    "escaped NUL": b'{"uuid":"U","s":"a\\u0000b","\\u0000":1}',
    "half of a surrogate pair": b'{"uuid":"U","s":"\\ud800","\\udc00":1}',
    "prototype": b'{"uuid":"U","__proto__":{"x":1}}',
    "500 levels": b'{"uuid":"U","deep":[' + b'{"a":[' * 249 + b"]}" * 249 + b"]}",
    "many brackets in a text": b'{"uuid":"U","s":"' + b"[{" * 9_000 + b'"}',
    "quote and placeholder": b'{"uuid":"U","q":"it\'s $1 :name %s \\" --"}',
    "300 kB": b'{"uuid":"U","s":"' + b"x" * 300_000 + b'"}',
}
REFUSED_BY_JSONB = ("escaped NUL", "half of a surrogate pair")


@on_text
async def test_m42_a_document_is_kept_byte_for_byte(bench: Bench) -> None:
    for name, document in KEPT.items():
        written = await bench.store.create(document)
        assert b'"environment":' + document + b',"timestamp"' in written.record, name
        assert await bench.stored_text("U") == document.decode(), name
        assert await bench.store.get("U") == written.record, name
        assert written.change is not None
        assert written.change.hash == content_hash(document), name
        assert written.record.startswith(b'{"id":"U","environmentUuid":"U",'), name
        await bench.run("DELETE FROM environments")


@on_text
async def test_update_keeps_it_byte_for_byte_too(bench: Bench) -> None:
    await bench.create("U", name="first")
    document = KEPT["spaces and line ends"]
    written = await bench.store.update("U", document)
    assert await bench.stored_text("U") == document.decode()
    assert b'"environment":' + document + b',"timestamp"' in await bench.store.get("U")
    assert written.record == await bench.store.get("U")


@pytest.mark.parametrize("bench", ["postgresql with jsonb"], indirect=True)
async def test_m42_on_jsonb_an_equal_document_is_kept_or_it_is_refused(bench: Bench) -> None:
    for name, kept in KEPT.items():
        document = kept.replace(b",1e400,5e-324", b"")  # jsonb keeps such numbers with all their digits
        if name in REFUSED_BY_JSONB:
            await assert_refused(bench, document, "environment")
            continue
        written = await bench.store.create(document)
        assert canonical_text(parse(await bench.stored_text("U"))) == canonical_text(parse(document.decode())), name
        assert written.change is not None
        assert written.change.hash == content_hash(document), name
        assert await bench.store.get("U") == written.record, name
        await bench.run("DELETE FROM environments")


@on_all
@pytest.mark.parametrize("megabytes", [4, pytest.param(20, marks=pytest.mark.long)])
async def test_m42_a_large_document_is_kept(bench: Bench, megabytes: int) -> None:
    document = b'{"uuid":"U","rows":[' + b",".join([b'{"name":"%s"}' % (b"x" * 80)] * (11_000 * megabytes)) + b"]}"
    assert len(document) > megabytes * 1_000_000
    written = await bench.store.create(document)
    assert written.change is not None
    assert written.change.hash == content_hash(document)
    assert await bench.store.get("U") == written.record


@on_all
@pytest.mark.parametrize(
    ("document", "rest"),
    [(b"{}", "}"), (b"{ }", " }"), (b' {"b":1, "a":2 }', ',"b":1, "a":2 }'), (b'{\n"x":{"uuid":"inner"}}', None)],
)
async def test_a_missing_uuid_is_made_and_put_in_front(bench: Bench, document: bytes, rest: str | None) -> None:
    record = read((await bench.store.create(document)).record)
    uuid = record["id"]
    assert MADE.match(uuid)
    assert record["environment"] == {"uuid": uuid, **json.loads(document)}
    if rest is not None and bench.status.dialect == "sqlite":
        assert (await bench.stored_text(uuid)).strip() == f'{{"uuid":"{uuid}"{rest}'


MADE = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\Z")
EMPTY = b' { "a" : {"uuid":""},\t"uuid" :\n"" , "b":[{"uuid":"","c":1.0}] } '


@on_all
async def test_an_empty_uuid_is_made_in_its_place(bench: Bench) -> None:
    record = read((await bench.store.create(EMPTY)).record)
    assert record["environment"] == {**json.loads(EMPTY), "uuid": record["id"]}
    assert MADE.match(record["id"])
    if bench.status.dialect == "sqlite":
        whole = EMPTY.decode().replace('\n""', f'\n"{record["id"]}"')
        assert await bench.stored_text(record["id"]) == whole


@on_all
@pytest.mark.parametrize("document", [b'{"name":"second"}', b'{"uuid":"","name":"second"}'])
async def test_an_update_without_a_uuid_keeps_the_one_it_has(bench: Bench, document: bytes) -> None:
    await bench.create("U", name="first")
    record = read((await bench.store.update("U", document)).record)
    assert record["environment"] == {"uuid": "U", "name": "second"}


@on_all
async def test_an_update_to_another_uuid_is_refused(bench: Bench) -> None:
    before = await bench.create("U", name="first")
    with pytest.raises(ValidationError) as caught:
        await bench.store.update("U", b'{"uuid":"V"}')
    assert caught.value.code == 422
    assert caught.value.data[0]["field"] == "environment.uuid"
    assert read(await bench.store.get("U")) == before


REFUSED = [
    (b"[]", "environment"),
    (b'"text"', "environment"),
    (b"null", "environment"),
    (b"7", "environment"),
    (b'{"uuid":7}', "environment.uuid"),
    (b'{"uuid":null}', "environment.uuid"),
    (b'{"uuid":{}}', "environment.uuid"),
    (b'{"uuid":"' + b"x" * 256 + b'"}', "environment.uuid"),
    (b'{"uuid":"a\\u0000"}', "environment.uuid"),
    (b'{"uuid":"\\ud800"}', "environment.uuid"),
    (b'{"uuid":"V","uuid":7}', "environment.uuid"),
    (b'{"uuid":"V","deep":' + b"[" * 500 + b"]" * 500 + b"}", "environment"),
    (b'{"uuid":"V","n":NaN}', "environment"),
    (b'{"uuid":"V","n":1', "environment"),
    (b'{"uuid":"V"} x', "environment"),
    (b'{"uuid":"V","s":"a\x00b"}', "environment"),
    (b'{"uuid":"V","s":"\xff"}', "environment"),
    (b'\xef\xbb\xbf{"uuid":"V"}', "environment"),
]


@on_all
async def test_m42_what_cannot_be_stored_is_refused_before_anything_is_written(bench: Bench) -> None:
    for document, field in REFUSED:
        await assert_refused(bench, document, field)


@on_all
async def test_a_uuid_of_255_characters_is_taken(bench: Bench) -> None:
    uuid = "é" * 255
    await bench.create(uuid)
    assert read(await bench.store.get(uuid))["id"] == uuid


@on_all
@pytest.mark.parametrize("uuid", ["", "x" * 256, "a\0b", "\ud800"])
async def test_a_uuid_that_no_database_can_hold_is_refused(bench: Bench, uuid: str) -> None:
    for operation in ("get", "remove", "restore", "permanent_delete"):
        with pytest.raises(ValidationError) as caught:
            await getattr(bench.store, operation)(uuid)
        assert caught.value.data[0]["field"] == "uuid"


@on_all
async def test_a_record_larger_than_a_reply_is_refused_before_anything_is_written(bench: Bench) -> None:
    document = b'{"uuid":"U","s":"%s"}' % ("é" * 1_000).encode()
    size = len((await bench.store.create(document)).record)
    before = read(await bench.store.get("U"))
    other = document.replace(b'"U"', b'"V"').replace("é".encode(), "ü".encode())
    for operation in (
        bench.store.create(other, size),
        bench.store.update("U", other.replace(b'"V"', b'"U"'), None, 99),
    ):
        with pytest.raises(PayloadTooLargeError) as caught:
            await operation
        assert caught.value.code == 413
        assert caught.value.data["size"] > caught.value.data["limit"]
    assert await bench.list() == [before]
    await bench.store.create(other, size + 100)


async def assert_refused(bench: Bench, document: bytes, field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        await bench.store.create(document)
    violation: dict[str, Any] = caught.value.data[0]
    assert (caught.value.code, caught.value.type, violation["field"]) == (422, "VALIDATION_ERROR", field), document
    assert violation["message"]
    assert (await bench.store.stats(7))["total"] == 0
