"""Databases of PostgreSQL in other encodings than UTF8, as an old installation may have them."""

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

from broker.errors import ValidationError
from services.environments_store.defaults import OperationLimits
from services.environments_store.errors import DatabaseError, EnvironmentNotFoundError
from services.environments_store.operations.exporting import Export
from services.environments_store.operations.rows import look_at_documents
from services.environments_store.shape import TableShape
from tests.support.operations import LOGGER
from tests.support.postgres import PostgresDatabase, PostgresServer
from tests.support.store import Bench, open_bench, read

pytestmark = pytest.mark.anyio

UNKNOWN = "€uro"
"""A uuid that LATIN1 has no character for."""
BAD = r"""INSERT INTO environments (id, environment, "environmentUuid", "timestamp", "createdAt", "updatedAt")
VALUES ('bad', E'{"uuid":"bad","name":"caf\xe9"}', 'bad', 1, now(), now())"""
"""What a client that writes LATIN1 leaves in a database that does not check."""


@pytest.fixture
def database(request: pytest.FixtureRequest, postgres_server: PostgresServer) -> Iterator[PostgresDatabase]:
    database = PostgresDatabase(postgres_server, request.param)
    yield database
    database.drop()


@pytest.fixture
async def bench(database: PostgresDatabase) -> AsyncIterator[Bench]:
    async with open_bench("postgresql", database.url) as bench:
        yield bench


@pytest.mark.parametrize("database", ["LATIN1"], indirect=True)
async def test_a_uuid_that_the_database_cannot_write_is_not_there(bench: Bench) -> None:
    await bench.create("é", name="café")
    for sought in (bench.store.get, bench.store.remove, bench.store.restore, bench.store.permanent_delete):
        with pytest.raises(EnvironmentNotFoundError, match=UNKNOWN):
            await sought(UNKNOWN)
    for page, limit in itertools.product((bench.list, bench.list_deleted), (None, 3)):
        with pytest.raises(EnvironmentNotFoundError) as caught:
            await page(after=UNKNOWN, limit=limit)
        assert caught.value.data == {"uuid": UNKNOWN, "field": "after"}
    with pytest.raises(ValidationError):
        await bench.create(UNKNOWN)
    assert [record["environment"]["name"] for record in await bench.list(after=None)] == ["café"]


@pytest.mark.parametrize("database", ["SQL_ASCII"], indirect=True)
async def test_a_document_that_is_no_utf_8_does_not_make_the_others_unreadable(
    bench: Bench, database: PostgresDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.create("good", name="café")
    database.run_sql(BAD)
    for limit in (None, 10):
        good, bad = await bench.list(limit=limit)
        assert good["environment"]["name"] == "café"
        assert (bad["id"], bad["environment"], bad["hash"]) == ("bad", None, None)
    assert "The environment 'bad' is damaged, and listed without a document" in caplog.text
    with pytest.raises(DatabaseError, match="'bad' is damaged in the database"):
        await bench.store.get("bad")
    await bench.store.remove("bad")
    assert (await bench.list_deleted(fields=["id"])) == [{"id": "bad"}]
    shape = TableShape(lambda: bench.status, lambda: None)
    (finding,) = await look_at_documents(bench.database, shape, OperationLimits())
    assert finding.message.startswith("1 environment has a document that cannot be read")
    assert "bad" in finding.message
    export = Export(bench.database, shape, LOGGER)
    lines = b"".join([chunk async for chunk in export.chunks("all")])
    assert [(read(line)["id"], read(line)["hash"] is None) for line in lines.splitlines()] == [
        ("good", False),
        ("bad", True),
    ]
    assert export.damaged == 1
    await bench.store.restore("bad")
    await bench.store.update("bad", b'{"uuid":"bad","name":"mended"}')
    assert [record["id"] for record in await bench.list()] == ["good", "bad"]
