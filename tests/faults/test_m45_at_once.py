"""Scenario 45: the guide's six calls at once after one another: the fourth always sees the deletion."""

from pathlib import Path
from typing import Any

import pytest

from broker import ServiceBroker
from services.environments_store.service import EnvironmentsStore

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
@pytest.mark.parametrize("rounds", [40, pytest.param(1_000, marks=pytest.mark.long)])
async def test_m45_the_guides_six_calls_again_and_again(
    rounds: int, dialect: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'environments.sqlite'}"
    if dialect == "postgresql":
        url = str(request.getfixturevalue("postgres_url"))
    async with ServiceBroker("store", services=[EnvironmentsStore(url)]) as broker:

        async def call(action: str, **params: Any) -> Any:
            return await broker.call(f"environments-store.{action}", params)

        for number in range(rounds):
            record = await call("create", environment={"name": f"Environment {number}"})
            uuid = record["environment"]["uuid"]
            assert await call("remove", uuid=uuid) == {"success": True}
            assert await call("list") == []
            assert [one["id"] for one in await call("listDeleted")] == [uuid]
            assert await call("restore", uuid=uuid) == {"success": True}
            assert [one["id"] for one in await call("list")] == [uuid]
            await call("permanentDelete", uuid=uuid, force=True)
