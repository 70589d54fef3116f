"""Waiting for an index build in a command: its progress, what blocks it, and when to give up."""

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import anyio

from broker import MoleculerError
from services.environments_store.commands.progress import Report
from services.environments_store.defaults import MigrationBudgets
from services.environments_store.operations.progress import BuildProgress, watch_index_build

__all__ = ["IndexWait"]

T = TypeVar("T")


class IndexWait:
    """Gives up when other sessions block the build for `wait_s`; the build itself may take any time."""

    def __init__(self, wait_s: float, report: Report, logger: logging.Logger) -> None:
        self._wait_s = wait_s
        self._report = report
        self._logger = logger
        self._waiting_since: float | None = None
        self._logged_at: float | None = None
        self.given_up = ""
        """What blocked the build for too long; empty when it did not give up."""

    async def run(self, url: str, builder: str, work: Callable[[], Awaitable[T]]) -> T | None:
        """Return the result of the work, None when it gave up. `builder` is the name of its session."""
        outcome: T | MoleculerError | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch_index_build, url, builder, partial(self._look, tasks.cancel_scope.cancel))
            try:
                outcome = await work()
            except MoleculerError as error:  # raised below: a task group would wrap it
                outcome = error
            tasks.cancel_scope.cancel()
        if isinstance(outcome, MoleculerError):
            raise outcome
        return outcome

    def _look(self, give_up: Callable[[], None], build: BuildProgress) -> None:
        waits = f", waiting for {build.waits_for}" if build.waits_for else ""
        self._report(f"index: {build.phase}{waits}", build.done, build.total or None)
        now = anyio.current_time()
        if not build.waits_for:
            self._waiting_since = None
            return
        if self._logged_at is None or now - self._logged_at >= MigrationBudgets().blockers_every_s:
            self._logged_at = now
            self._logger.info("The index build is waiting for %s", build.waits_for)
        self._waiting_since = now if self._waiting_since is None else self._waiting_since
        if now - self._waiting_since >= self._wait_s:
            self.given_up = (
                f"gave up after waiting {self._wait_s:g} s for {build.waits_for}. End that transaction and run the"
                " command again: it drops the INVALID index that is left."
            )
            give_up()
