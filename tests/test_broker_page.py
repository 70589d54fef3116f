"""docs/broker.md shows what happens: its code runs, and its lists are complete."""

import re
from pathlib import Path

import pytest

from broker.services.policies import NAMES
from tests.support.blocks import Block, read_blocks, run_python_block
from tests.support.nats_server import NatsServer
from tests.support.processes import REPOSITORY

PAGE = (REPOSITORY / "docs" / "broker.md").read_text(encoding="utf-8")
BLOCKS = read_blocks(PAGE)


def test_every_block_is_python_that_is_run() -> None:
    assert {block.language for block in BLOCKS} == {"python"}


@pytest.mark.anyio
@pytest.mark.parametrize("block", [pytest.param(block, id=block.heading) for block in BLOCKS])
async def test_a_python_block_runs_as_it_is_pasted(block: Block, tmp_path: Path, nats_server: NatsServer) -> None:
    await run_python_block(block, tmp_path, nats_server.url)


def test_every_internal_event_is_named() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "broker").rglob("*.py"))
    fired = set(re.findall(r'"(\$(?:node|services|broker|transporter|transit)\.[a-z]+)"', source)) - {"$node.list"}
    assert fired <= set(re.findall(r"`(\$[a-z.-]+)`", PAGE))


def test_every_strategy_is_named() -> None:
    assert set(NAMES.values()) <= set(re.findall(r"`(\w+)`", PAGE))
