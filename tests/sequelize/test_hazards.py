"""What the original does to rows of others by its periodic synchronisation: it takes its memory for the truth.

Nobody can help it while it runs. These tests say what an operator has to expect, and what is left to bring back.
"""

import pytest

from tests.support.original import Originals
from tests.support.served import serving

pytestmark = pytest.mark.anyio


async def test_a_synchronisation_of_the_original_puts_what_it_does_not_know_into_the_trash_where_it_can_be_restored(
    database_url: str, original_process: Originals
) -> None:
    original = await original_process.open("D", database_url)
    await original.start()
    for uuid in ("held", "edited", "removed"):
        await original.save(id=uuid, environment={"uuid": uuid, "by": "original"})
    assert await original.do("load") == 3
    async with serving(database_url) as service:
        record = await service.ask("create", environment={"uuid": "ours", "by": "us"})
        await service.ask("update", uuid="edited", environment={"uuid": "edited", "by": "us"})
        await service.ask("remove", uuid="removed")

        assert await original.do("synchronise") == ["ours"]

        # Ours is in the trash, whole; our edit is overwritten, and what we removed is live again.
        trash = await service.ask("listDeleted")
        assert [(one["id"], one["hash"]) for one in trash] == [("ours", record["hash"])]
        live = {one["id"]: one["environment"]["by"] for one in await service.ask("list")}
        assert live == {"held": "original", "edited": "original", "removed": "original"}

        await original.do("close")
        await service.ask("restore", uuid="ours")
        assert (await service.ask("get", uuid="ours"))["hash"] == record["hash"]
