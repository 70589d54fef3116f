"""The change-over: the original and our service work on the same tables for a while, then the original goes."""

from typing import Any

import anyio
import pytest

from tests.support.original import Original, Originals
from tests.support.served import Serving, serving

pytestmark = pytest.mark.anyio

WRITES = 40
"""Rows that each side makes while the other one works."""


async def test_a_change_over_with_both_running_loses_nothing_of_either(
    database_url: str, original_process: Originals
) -> None:
    original = await original_process.open("D", database_url)
    await original.start()
    expected = await write_as_the_original(original, "before", WRITES // 4)
    async with serving(database_url) as service:
        both: list[dict[str, bool]] = []

        async def keep(written: Any) -> None:
            both.append(await written)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(keep, write_as_the_original(original, "original", WRITES))
            tasks.start_soon(keep, write_as_ours(service, "ours", WRITES))
        expected |= both[0] | both[1]
        assert await seen_by_us(service) == expected
        assert await seen_by_the_original(original) == expected

        await original.do("close")
        expected |= await write_as_ours(service, "after", WRITES // 4)
        assert await seen_by_us(service) == expected


async def write_as_the_original(original: Original, prefix: str, count: int) -> dict[str, bool]:
    """Which of its rows are live when it is done: every third one was removed, every sixth one restored again."""
    for number in range(count):
        uuid = f"{prefix}-{number}"
        await original.save(id=uuid, environment={"uuid": uuid, "version": 1})
        await original.save(id=uuid, environment={"uuid": uuid, "version": 2})
        if number % 3 == 0:
            await original.do("remove", id=uuid)
        if number % 6 == 0:
            await original.do("restore", id=uuid)
    return written(prefix, count)


async def write_as_ours(service: Serving, prefix: str, count: int) -> dict[str, bool]:
    """The same by our actions."""
    for number in range(count):
        uuid = f"{prefix}-{number}"
        await service.ask("create", environment={"uuid": uuid, "version": 1})
        await service.ask("update", uuid=uuid, environment={"uuid": uuid, "version": 2})
        if number % 3 == 0:
            await service.ask("remove", uuid=uuid)
        if number % 6 == 0:
            await service.ask("restore", uuid=uuid)
    return written(prefix, count)


def written(prefix: str, count: int) -> dict[str, bool]:
    return {f"{prefix}-{number}": number % 3 != 0 or number % 6 == 0 for number in range(count)}


async def seen_by_us(service: Serving) -> dict[str, bool]:
    found: dict[str, bool] = {}
    for action, live in (("list", True), ("listDeleted", False)):
        for record in await service.ask(action):
            assert record["environment"] == {"uuid": record["id"], "version": 2}
            found[record["id"]] = live
    return found


async def seen_by_the_original(original: Original) -> dict[str, bool]:
    rows = await original.find_all()
    assert all(row["environment"] == {"uuid": uuid, "version": 2} for uuid, row in rows.items())
    return {uuid: row.get("deletedAt") is None for uuid, row in rows.items()}
