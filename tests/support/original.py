"""The original application beside ours: its Sequelize models on the same table, driven from a test.

    async with originals() as process:
        original = await process.open("D", database_url)
        await original.start()
        await original.save(id="U", environment={"uuid": "U"})
        rows = await original.find_all()

What each generation does is in tests/sequelize/js/application.cjs.
"""

import contextlib
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any, Literal

from tests.support.node import SEQUELIZE, node_environment, node_program
from tests.support.processes import DEADLINE_S, Process, start

__all__ = ["Generation", "Original", "OriginalError", "Originals", "originals"]

Generation = Literal["A", "B", "C", "D"]
ZONE = "Asia/Bangkok"
"""Far from UTC, so that a date taken for local time is seven hours off."""


class OriginalError(Exception):
    """What a command failed with, as Sequelize says it."""


class Original:
    """One application with its own connections. Made by `Originals.open`."""

    def __init__(self, originals: "Originals", name: str) -> None:
        self._originals = originals
        self._name = name

    async def start(self) -> dict[str, Any] | None:
        """What it does to the schema at a start. Generation D tells `added` and `indexed`, or why it `failed`."""
        outcome: dict[str, Any] | None = await self.do("start")
        return outcome

    async def save(self, **row: Any) -> None:
        """Its upsert: `id`, `environment`, and for generation D `deletedAt`, null when it is not given."""
        await self.do("save", **row)

    async def find_all(self, paranoid: bool | None = None) -> dict[str, dict[str, Any]]:
        """Every row by id, dates as JavaScript prints them. `paranoid`: by a model with Sequelize's soft delete, which
        hides deleted rows when it is true."""
        fields = {} if paranoid is None else {"paranoid": paranoid}
        return {row["id"]: row for row in await self.do("findAll", **fields)}

    async def statements(self) -> list[str]:
        """The SQL it has sent since the last time this was asked."""
        statements: list[str] = await self.do("statements")
        return statements

    async def do(self, command: str, **fields: Any) -> Any:
        """Any method of the application; OriginalError when it failed."""
        return await self._originals.command(self._name, command, **fields)


class Originals:
    """A process with any number of applications. Made by `originals`."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._numbers = itertools.count(1)

    async def open(self, generation: Generation, url: str) -> Original:
        """An application that has not started yet."""
        name = f"{generation}-{next(self._numbers)}"
        await self.command(name, "open", generation=generation, url=url)
        return Original(self, name)

    async def command(self, application: str, command: str, **fields: Any) -> Any:
        number, before = next(self._numbers), len(self._process.lines)
        await self._process.write_line(
            json.dumps({"call": number, "application": application, "command": command, **fields})
        )
        start_of_answer = f'{{"call":{number},'
        line = await self._process.line(
            lambda text: text.startswith(start_of_answer), after=before, deadline_s=DEADLINE_S * 2
        )
        answer = json.loads(line)
        if "error" in answer:
            raise OriginalError(f"{answer['error']['name']}: {answer['error']['message']}")
        return answer["result"]


@contextlib.asynccontextmanager
async def originals(zone: str = ZONE) -> AsyncIterator[Originals]:
    """Starts the process, in another time zone than most servers; the fixture `sequelize_modules` must have run."""
    environment = {**node_environment(), "TZ": zone, "NODE_OPTIONS": "--disable-warning=ExperimentalWarning"}
    script = SEQUELIZE / "js" / "main.cjs"
    async with start(node_program(), script, environment=environment, name="original applications") as process:
        await process.line('{"event":"ready"')
        yield Originals(process)
