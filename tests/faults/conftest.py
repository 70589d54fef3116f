"""Fixtures of the fault scenarios."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.conftest import bench, kept_tables
from tests.support.shapes import Lines

__all__ = ["bench", "kept_tables", "lines", "path"]


@pytest.fixture
def lines(request: pytest.FixtureRequest) -> Iterator[Lines]:
    """The log lines of the migrators that are given `lines.logger`."""
    handler = Lines(request.node.name)
    yield handler
    handler.logger.removeHandler(handler)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the SQLite file of a test is."""
    return tmp_path / "environments.sqlite"
