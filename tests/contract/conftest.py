"""Fixtures of the contract suites: one body of tests over every implementation."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.store import Bench, open_bench


@pytest.fixture
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    """A store on an empty table of the shape that the test names by `parametrize(..., indirect=True)`."""
    shape: str = request.param
    sqlite = shape.startswith("sqlite")
    url = f"sqlite:///{tmp_path / 'environments.sqlite'}" if sqlite else str(request.getfixturevalue("postgres_url"))
    async with open_bench(shape, url) as bench:
        yield bench
