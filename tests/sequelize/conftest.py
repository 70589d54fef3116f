"""An empty database of each dialect, and the original application on it."""

from pathlib import Path

import pytest


@pytest.fixture(params=["postgresql", "sqlite"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh database of each dialect in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'environments.sqlite'}"
    url: str = request.getfixturevalue("postgres_url")
    return url
