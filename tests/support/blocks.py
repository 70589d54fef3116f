"""Blocks of code in a Markdown page, and Python blocks that run."""

import re
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import run_python

__all__ = ["NATS_ADDRESS", "Block", "read_blocks", "run_python_block"]

NATS_ADDRESS = "nats://127.0.0.1:4222"


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    heading: str


def read_blocks(page: str) -> list[Block]:
    """The blocks of a page, each with the heading it stands under."""
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    headings = [(one.start(), one[1]) for one in re.finditer(r"^##+ (.*)$", page, re.MULTILINE)]
    return [Block(one[1], one[2], [text for at, text in headings if at < one.start()][-1]) for one in found]


async def run_python_block(block: Block, folder: Path, nats_url: str) -> None:
    """Run a block as it stands, as a file of its own, against a server of the test's."""
    assert block.text.endswith("\n    asyncio.run(main())\n"), "it would do nothing"
    file = folder / "pasted.py"
    file.write_text(block.text.replace(NATS_ADDRESS, nats_url))
    ran = await run_python("-m", "tests.support.blocks", file)
    assert ran.returncode == 0, ran.report("failed")


def main() -> None:
    """Run the file that is named first, as `python FILE` does."""
    runpy.run_path(sys.argv[1], run_name="__main__")
