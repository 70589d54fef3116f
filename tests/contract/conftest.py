"""Fixtures of the contract suites: one body of tests over every implementation."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.cluster import Cluster, open_cluster, shorten_waits
from tests.support.store import Bench, open_bench


@pytest.fixture
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    """A store on an empty table of the shape that the test names by `parametrize(..., indirect=True)`."""
    shape: str = request.param
    sqlite = shape.startswith("sqlite")
    url = f"sqlite:///{tmp_path / 'environments.sqlite'}" if sqlite else str(request.getfixturevalue("postgres_url"))
    async with open_bench(shape, url) as bench:
        yield bench


@pytest.fixture(params=["memory", "nats"])
async def cluster(
    request: pytest.FixtureRequest, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Cluster]:
    """Brokers over each transport; the tests never learn over which."""
    shorten_waits(monkeypatch)
    url = str(request.getfixturevalue("nats_url")) if request.param == "nats" else f"memory://{namespace}"
    async with open_cluster(url, namespace) as cluster:
        yield cluster
