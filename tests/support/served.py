"""The complete service on its own node, with its log, for tests of what callers see."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio

from broker import MoleculerError, ServiceBroker
from services.environments_store.defaults import DatabaseSettings, MigrationBudgets, StoreLimits
from services.environments_store.service import EnvironmentsStore
from tests.support.migrations import BUDGETS
from tests.support.processes import DEADLINE_S
from tests.support.waiting import eventually

__all__ = ["Serving", "ask", "failure", "serving"]


@dataclass
class Serving:
    """A running node with the service; `lines` are all log lines of its process since its start."""

    broker: ServiceBroker
    lines: list[str]

    async def ask(self, action: str, **params: Any) -> Any:
        return await ask(self.broker, action, **params)

    async def failure(self, action: str, **params: Any) -> MoleculerError:
        return await failure(self.broker, action, **params)

    async def insist(self, action: str, **params: Any) -> list[MoleculerError]:
        """Call until it succeeds; returns the errors before that."""
        errors: list[MoleculerError] = []
        with anyio.fail_after(DEADLINE_S):
            while True:
                try:
                    await self.ask(action, **params)
                    return errors
                except MoleculerError as error:
                    errors.append(error)
                    await anyio.sleep(0.05)

    async def until_state(self, state: str, reason: str | None = None, *, steps: bool = False) -> dict[str, Any]:
        """Wait for this state of the schema (`steps`: and until none of its steps is pending)."""

        async def look() -> dict[str, Any] | None:
            answer: dict[str, Any] = await self.ask("schema")
            if answer["state"] != state or answer.get("reason") != reason:
                return None
            return None if steps and any(step["state"] != "done" for step in answer["steps"]) else answer

        with anyio.fail_after(DEADLINE_S):
            while (answer := await look()) is None:  # noqa: ASYNC110 # the state is polled with a call
                await anyio.sleep(0.01)
        return answer

    def guide_lines(self) -> list[str]:
        """The lines among the guide's four, in order."""
        return [line for line in self.lines if line[:1] in ("🔄", "✅", "❌") and "index" not in line]

    async def until_logged(self, text: str) -> str:
        return await eventually(lambda: next((line for line in self.lines if text in line), ""), f"the line {text!r}")


async def ask(broker: ServiceBroker, action: str, **params: Any) -> Any:
    return await broker.call(f"environments-store.{action}", params, timeout=DEADLINE_S)


async def failure(broker: ServiceBroker, action: str, **params: Any) -> MoleculerError:
    """The error of a call that must fail."""
    try:
        answer = await ask(broker, action, **params)
    except MoleculerError as error:
        return error
    raise AssertionError(f"{action} {params} answered {answer!r}")


class _Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@asynccontextmanager
async def serving(
    url: str,
    *,
    budgets: MigrationBudgets = BUDGETS,
    settings: DatabaseSettings | None = None,
    limits: StoreLimits | None = None,
    node_id: str = "store",
    create_table: bool = False,
) -> AsyncIterator[Serving]:
    """Start the service; it answers local calls when the block begins, and is stopped after it."""
    log, root = _Log(), logging.getLogger()
    level = root.level
    root.addHandler(log)
    root.setLevel(logging.INFO)
    service = EnvironmentsStore(url, budgets=budgets, settings=settings, limits=limits, create_table=create_table)
    try:
        async with ServiceBroker(node_id, services=[service]) as broker:
            yield Serving(broker, log.lines)
    finally:
        root.removeHandler(log)
        root.setLevel(level)
