"""The server, the session and the process live in different time zones."""

import json

import pytest

from tests.support.postgres import PostgresDatabase
from tests.support.processes import REPOSITORY, run_python
from tests.support.shapes import postgres_sql

pytestmark = pytest.mark.anyio

ZONES = ["UTC", "Asia/Bangkok", "America/Los_Angeles"]
YOUNG, ANCIENT, OLD = (f"c0ffee00-0000-4000-8000-00000000000{number}" for number in (1, 2, 3))
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
        forecast = await service.ask("purge", olderThanDays=7, dryRun=True)
        purged = await service.ask("purge", olderThanDays=7)
        left = sorted(record["id"] for record in await service.ask("listDeleted"))
        print(json.dumps([listed, counts, forecast, purged, left]))

anyio.run(main)
"""


@pytest.mark.parametrize("shape", ["p_dmig", "p_man"])
async def test_m28_dates_counts_and_purges_are_the_same_in_every_zone(
    shape: str, postgres_database: PostgresDatabase
) -> None:
    """What was deleted 6 days and 20 hours ago would be older than 7 days in the wall time of Bangkok, and what was
    deleted 7 days and 4 hours ago younger in that of Los Angeles."""
    now = "now() AT TIME ZONE 'UTC'" if shape == "p_man" else "now()"
    moment = '"deletedAt"' if shape == "p_man" else "\"deletedAt\" AT TIME ZONE 'UTC'"
    role = postgres_database.create_role(options="SUPERUSER")
    for number, process in enumerate(ZONES):
        server, session = ZONES[number - 1], ZONES[number - 2]
        postgres_database.run_sql(f"DROP TABLE IF EXISTS environments, metadata; {postgres_sql(shape)}")
        for row, age in ((YOUNG, "6 days 20 hours"), (OLD, "7 days 4 hours")):
            postgres_database.run_sql(
                f"UPDATE environments SET \"deletedAt\" = {now} - interval '{age}' WHERE id = '{row}'"
            )
        postgres_database.run_sql(f"ALTER DATABASE \"{postgres_database.name}\" SET TimeZone = '{server}'")
        postgres_database.run_sql(f"ALTER ROLE \"{postgres_database.role_name(role)}\" SET TimeZone = '{session}'")
        done = await run_python("-c", LOOK, role, environment={"TZ": process, "PYTHONPATH": str(REPOSITORY)})
        assert done.returncode == 0, done.report("failed")
        listed, counts, forecast, purged, left = json.loads(done.stdout[-1])
        assert listed.keys() == {YOUNG, OLD, ANCIENT}
        assert listed[ANCIENT] == forecast["oldest"] == "2025-05-27T08:54:47.123Z"
        assert listed[OLD] == forecast["newest"]
        assert [count["recentlyDeleted"] for count in counts] == [0, 2, 3]
        assert forecast["remaining"] == 2
        assert purged == {"deleted": 2, "remaining": 0}
        assert left == [YOUNG, "just deleted"]
        close = f"SELECT now() AT TIME ZONE 'UTC' - ({moment}) < interval '1 hour' FROM environments WHERE id LIKE 'j%'"
        assert postgres_database.run_sql(f"SET TimeZone = 'UTC'; {close}") == "t"
