"""Fixtures of the broker's own tests: everything in this process, no server."""

from collections.abc import AsyncIterator

import pytest

from tests.support.cluster import Cluster, open_cluster, shorten_waits


@pytest.fixture
async def cluster(namespace: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    """Brokers over the bus inside this process."""
    shorten_waits(monkeypatch)
    async with open_cluster(f"memory://{namespace}", namespace) as cluster:
        yield cluster
