"""The server, the session and the process live in different time zones."""

import json
from typing import Any

import pytest

from tests.support.postgres import PostgresDatabase
from tests.support.processes import REPOSITORY, run_python
from tests.support.shapes import postgres_sql

pytestmark = pytest.mark.anyio

ZONES = ["UTC", "Asia/Bangkok", "America/Los_Angeles"]
LOOK = """
import json, sys
import anyio
from tests.support.served import serving

async def main() -> None:
    async with serving(sys.argv[1]) as service:
        await service.until_state("ready", steps=True)
        await service.ask("create", environment={"uuid": "just deleted"})
        await service.ask("remove", uuid="just deleted")
        listed = {record["id"]: record["deletedAt"] for record in await service.ask("listDeleted")}
        del listed["just deleted"]
        counts = [await service.ask("stats", recentDays=days) for days in (0, 7, 8)]
        print(json.dumps([listed, counts]))

anyio.run(main)
"""


@pytest.mark.parametrize("shape", ["p_dmig", "p_man"])
async def test_m28_dates_counts_and_the_moment_of_a_deletion_are_the_same_in_every_zone(
    shape: str, postgres_database: PostgresDatabase
) -> None:
    """A row of 6 days and 20 hours counts as of this week in UTC, and would not in the wall time of Bangkok."""
    postgres_database.run_sql(postgres_sql(shape))
    now = "now() AT TIME ZONE 'UTC'" if shape == "p_man" else "now()"
    postgres_database.run_sql(
        f"UPDATE environments SET \"deletedAt\" = {now} - interval '6 days 20 hours' WHERE id LIKE '%1'"
    )
    kept = postgres_database.run_sql('SELECT id, "deletedAt"::text FROM environments ORDER BY 1')
    seen: list[Any] = []
    for process, server in zip(ZONES, ZONES[1:] + ZONES[:1], strict=True):
        role = postgres_database.create_role(options="SUPERUSER")
        postgres_database.run_sql(f"ALTER DATABASE \"{postgres_database.name}\" SET TimeZone = '{server}'")
        postgres_database.run_sql(f"ALTER ROLE \"{postgres_database.role_name(role)}\" SET TimeZone = '{ZONES[1]}'")
        done = await run_python("-c", LOOK, role, environment={"TZ": process, "PYTHONPATH": str(REPOSITORY)})
        assert done.returncode == 0, done.report("failed")
        seen.append(json.loads(done.stdout[-1]))
        moment = '"deletedAt"' if shape == "p_man" else "\"deletedAt\" AT TIME ZONE 'UTC'"
        close = (
            f"SELECT now() AT TIME ZONE 'UTC' - ({moment}) < interval '1 hour' FROM environments WHERE id LIKE 'just%'"
        )
        assert postgres_database.run_sql(f"SET TimeZone = 'UTC'; {close}") == "t"
        postgres_database.run_sql("DELETE FROM environments WHERE id LIKE 'just%'")
    assert seen[1:] == seen[:1] * 2
    listed, counts = seen[0]
    assert listed["c0ffee00-0000-4000-8000-000000000002"] == "2025-05-27T08:54:47.123Z"
    assert [count["recentlyDeleted"] for count in counts] == [0, 2, 2]
    postgres_database.run_sql(f"ALTER DATABASE \"{postgres_database.name}\" SET TimeZone = 'UTC'")
    assert postgres_database.run_sql('SELECT id, "deletedAt"::text FROM environments ORDER BY 1') == kept
