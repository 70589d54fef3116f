"""Fixtures of the contract suites: one body of tests over every implementation."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker import MoleculerError
from tests.support.cluster import Cluster, open_cluster, shorten_waits
from tests.support.postgres import FINGERPRINT, PostgresDatabase, PostgresServer
from tests.support.store import Bench, open_bench


class _Kept:
    """A table on PostgreSQL with its open database, for the tests of a module that leave nothing but rows in it."""

    def __init__(self, server: PostgresServer, shape: str) -> None:
        self._database = PostgresDatabase(server)
        self._shape = shape
        self._new = ""

    async def open(self) -> None:
        self._opened = open_bench(self._shape, self._database.url)
        self.bench = await self._opened.__aenter__()
        self._new = await self._fingerprint()

    async def is_as_new(self) -> bool:
        """Remove the rows, and see whether there is anything else."""
        try:
            await self.bench.run("DELETE FROM environments")
            return await self._fingerprint() == self._new
        except MoleculerError:
            return False

    async def close(self) -> None:
        await self._opened.__aexit__(None, None, None)
        self._database.drop()

    async def _fingerprint(self) -> str:
        row = await self.bench.database.fetch_one(f"SELECT f::text AS all FROM ({FINGERPRINT}) AS f")
        assert row is not None
        return str(row["all"])


@pytest.fixture(scope="module")
async def kept_tables(anyio_backend: str) -> AsyncIterator[dict[str, _Kept]]:
    """Those that wait for the next test, by shape."""
    kept: dict[str, _Kept] = {}
    yield kept
    for one in kept.values():
        await one.close()


@pytest.fixture
async def bench(
    request: pytest.FixtureRequest, tmp_path: Path, kept_tables: dict[str, _Kept] | None
) -> AsyncIterator[Bench]:
    """A store on an empty table of the shape that the test names by `parametrize(..., indirect=True)`."""
    shape: str = request.param
    sqlite = shape.startswith("sqlite")
    if sqlite or kept_tables is None or {"postgres_url", "postgres_database"} & {*request.fixturenames}:
        url = (
            f"sqlite:///{tmp_path / 'environments.sqlite'}" if sqlite else str(request.getfixturevalue("postgres_url"))
        )
        async with open_bench(shape, url) as bench:
            yield bench
        return
    if (kept := kept_tables.pop(shape, None)) is None:
        kept = _Kept(request.getfixturevalue("postgres_server"), shape)
        await kept.open()
    yield Bench(kept.bench.database, kept.bench.status)
    if await kept.is_as_new():
        kept_tables[shape] = kept
    else:
        await kept.close()


@pytest.fixture(params=["memory", "nats"])
async def cluster(
    request: pytest.FixtureRequest, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Cluster]:
    """Brokers over each transport; the tests never learn over which."""
    shorten_waits(monkeypatch)
    url = str(request.getfixturevalue("nats_url")) if request.param == "nats" else f"memory://{namespace}"
    async with open_cluster(url, namespace) as cluster:
        yield cluster
