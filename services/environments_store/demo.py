"""The guide's six steps as a demonstration: a node of the service and a calling node, over a real NATS server.

The database is a temporary SQLite file in the schema from before the migration, with one environment, so that the
migration is shown too.
"""

import itertools
import logging
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from broker import MoleculerError, ServiceBroker
from services.environments_store.database.connect import open_database
from services.environments_store.embedded import embedded_server
from services.environments_store.schema.messages import ADDED, ADDING
from services.environments_store.service import EnvironmentsStore

__all__ = ["Step", "run_demo"]

TABLE_BEFORE = (
    "CREATE TABLE `environments` (`id` VARCHAR(255) UNIQUE PRIMARY KEY, `environment` JSON,"
    " `environmentUuid` VARCHAR(255), `timestamp` DECIMAL, `createdAt` DATETIME NOT NULL,"
    " `updatedAt` DATETIME NOT NULL)"
)
ROW_BEFORE = (
    "INSERT INTO environments VALUES ('c0ffee00-0000-4000-8000-000000000001',"
    """ '{"uuid":"c0ffee00-0000-4000-8000-000000000001","name":"From before the migration","port":3001}',"""
    " 'c0ffee00-0000-4000-8000-000000000001', 1748340000124,"
    " '2025-05-27 10:00:00.124 +00:00', '2025-05-27 10:00:00.124 +00:00')"
)
LOGGER = "demo.store"


class Step(NamedTuple):
    """One call of the guide and what it showed."""

    number: int
    title: str
    action: str
    params: dict[str, Any]
    answer: Any
    shows: str
    holds: bool


async def run_demo(show_log: Callable[[str], None], show_step: Callable[[Step], None]) -> bool:
    """Run all steps; True when each of them, and the migration, shows what the guide says."""
    log = _Lines(show_log)
    logger = logging.getLogger(LOGGER)
    logger.addHandler(log)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        async with _nodes(logger) as client:
            outcome = [log.holds(ADDING, ADDED)]
            async for step in _steps(client):
                show_step(step)
                outcome.append(step.holds)
            return all(outcome)
    finally:
        logger.removeHandler(log)


class _Lines(logging.Handler):
    """Passes on what the service logs, and remembers it."""

    def __init__(self, show: Callable[[str], None]) -> None:
        super().__init__()
        self._show = show
        self._seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._seen.append(record.getMessage())
        if record.name.endswith(EnvironmentsStore.name):
            self._show(record.getMessage())

    def holds(self, *lines: str) -> bool:
        return all(line in self._seen for line in lines)


@asynccontextmanager
async def _nodes(logger: logging.Logger) -> AsyncIterator[ServiceBroker]:
    """The node that calls, when the node of the service is there for it."""
    with tempfile.TemporaryDirectory(prefix="environments-store-demo-") as folder:
        url = f"sqlite:///{Path(folder) / 'environments.sqlite'}"
        await _make_table(url)
        async with (
            embedded_server() as server,
            ServiceBroker("demo-store", transporter=server.url, services=[EnvironmentsStore(url)], logger=logger),
            ServiceBroker("demo-client", transporter=server.url, logger=logger, request_timeout=10) as client,
        ):
            await client.wait_for_services(EnvironmentsStore.name, timeout=10)
            yield client


async def _make_table(url: str) -> None:
    database = open_database(url)
    await database.open()
    try:
        await database.execute(TABLE_BEFORE)
        await database.execute(ROW_BEFORE)
    finally:
        await database.close()


async def _steps(client: ServiceBroker) -> AsyncIterator[Step]:
    """The six steps of the guide; a failing call is shown as its answer."""
    uuid = ""
    numbers = itertools.count(1)

    async def ask(title: str, action: str, params: dict[str, Any], shows: str, holds: Callable[[Any], bool]) -> Step:
        number, name = next(numbers), f"{EnvironmentsStore.name}.{action}"
        try:
            answer = await client.call(name, params)
        except MoleculerError as error:
            answer = {"error": error.name, "code": error.code, "type": error.type, "message": error.message}
            return Step(number, title, name, params, answer, shows, False)
        try:
            return Step(number, title, name, params, answer, shows, holds(answer))
        except (KeyError, TypeError):  # an answer of another form shows nothing
            return Step(number, title, name, params, answer, shows, False)

    def holds_ours(answer: Any) -> bool:
        return any(record["id"] == uuid for record in answer)

    environment = {"name": "My environment", "port": 3001, "routes": []}
    step = await ask(
        "Create an environment",
        "create",
        {"environment": environment},
        "it is stored and has a uuid",
        lambda answer: answer["environment"] == {"uuid": answer["id"], **environment} and answer["deletedAt"] is None,
    )
    uuid = step.answer.get("id", "")
    yield step
    short = {"fields": ["id", "deletedAt"]}
    yield await ask(
        "Soft delete it", "remove", {"uuid": uuid}, "it succeeds", lambda answer: answer == {"success": True}
    )
    yield await ask(
        "List the live ones",
        "list",
        short,
        "it is not there; the one from before the migration is",
        lambda answer: not holds_ours(answer) and len(answer) == 1,
    )
    yield await ask("List the deleted ones", "listDeleted", short, "it is there", holds_ours)
    yield await ask("Restore it", "restore", {"uuid": uuid}, "it succeeds", lambda answer: answer == {"success": True})
    yield await ask("List the live ones again", "list", short, "it is back", holds_ours)


def as_json(step: Step) -> bytes:
    """A step as one line of JSON."""
    return msgspec.json.encode(step._asdict())
