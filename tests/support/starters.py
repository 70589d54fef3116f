"""Many real processes that migrate: forked from one that has imported everything, so that each starts in moments.

    async with starters() as crowd:
        await crowd.start("node-1", url)
        crowd.kill("node-1")
        end = await crowd.ended("node-1")

A process can be told to kill itself at its n-th statement: while the statement is on its way, or once it is answered.
It can be kept from what only root may do, write no file beyond a size, and, instead of migrating alone, serve and
answer calls.
"""

import asyncio
import contextlib
import ctypes
import json
import logging
import os
import resource
import select
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio

from broker import MoleculerError
from services.environments_store.defaults import MigrationBudgets
from services.environments_store.schema.migrator import migrate_once
from tests.support.processes import Process, start_python
from tests.support.served import serving
from tests.support.shapes import Lines

__all__ = ["BUDGETS", "SHORT", "End", "Starters", "main", "starters"]

BUDGETS = MigrationBudgets(
    start_s=60,
    poll_min_s=0.02,
    poll_max_s=0.05,
    index_invalid_recheck_s=0.05,
    index_wait_step_s=0.02,
    index_retry_s=0.1,
    rebuild_recheck_s=0.05,
)
"""Patient, as 32 processes on two cores need it, and without the pauses that are for the health of a real server."""
SHORT = MigrationBudgets(start_s=0.5)
"""Of a process that is to serve, and to say at once what it cannot have."""
_POLL_S = 0.01
_PR_SET_PDEATHSIG = 1
_CAPABILITY_VERSION_3 = 0x20080522


@dataclass(frozen=True)
class End:
    """How a process ended: the state of its schema when it came so far, and the guide's lines it logged.

    `error` is the schema's, or that of a start that failed; `answers` are those to its calls, errors as
    `[type, message]`; `log` is what it logged while it served.
    """

    code: int
    state: str | None = None
    reason: str | None = None
    error: str | None = None
    pending: list[str] = field(default_factory=list)
    guide_lines: list[str] = field(default_factory=list)
    statements: int = 0
    answers: list[Any] = field(default_factory=list)
    log: list[str] = field(default_factory=list)


class Starters:
    """Made by `starters`."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._pids: dict[str, int] = {}

    async def start(
        self,
        node_id: str,
        url: str,
        *,
        kill_at: int | None = None,
        moment: str = "after",
        unprivileged: bool = False,
        file_limit: int | None = None,
        calls: Sequence[tuple[str, dict[str, Any]]] | None = None,
    ) -> int:
        """Begin to migrate in a process of its own; returns its pid. A node id is used once."""
        order = {
            **{"node_id": node_id, "url": url, "kill_at": kill_at, "moment": moment},
            **{"unprivileged": unprivileged, "file_limit": file_limit, "calls": calls},
        }
        await self._process.write_line(json.dumps(order))
        pid: int = (await self._event("started", node_id))["pid"]
        self._pids[node_id] = pid
        return pid

    def kill(self, node_id: str) -> None:
        """SIGKILL, unless it has ended by itself."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pids[node_id], signal.SIGKILL)

    async def ended(self, node_id: str) -> End:
        """Wait for its end. The code is negative for a signal."""
        code: int = (await self._event("ended", node_id))["code"]
        done = next((e for e in self._events() if e["event"] == "done" and e["node_id"] == node_id), {})
        return End(code, **{name: value for name, value in done.items() if name not in ("event", "node_id")})

    async def run(self, node_id: str, url: str, **options: Any) -> End:
        """Start it, with the options of `start`, and wait for its end."""
        await self.start(node_id, url, **options)
        return await self.ended(node_id)

    def _events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._process.stdout if line.startswith("{")]

    async def _event(self, kind: str, node_id: str) -> dict[str, Any]:
        start = f'{{"event": "{kind}", "node_id": "{node_id}"'
        event: dict[str, Any] = json.loads(await self._process.line(lambda line: line.startswith(start)))
        return event


@contextlib.asynccontextmanager
async def starters() -> AsyncIterator[Starters]:
    """The process that forks the others; all of them end with the block."""
    async with start_python("-m", "tests.support.starters", name="starters") as process:
        await process.line("ready")
        yield Starters(process)


def main() -> None:
    """Fork for each line of stdin, and tell of each end, until stdin is closed."""
    running: dict[int, str] = {}
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    open_input = True
    while open_input or running:
        readable, _, _ = select.select([sys.stdin.buffer] if open_input else [], [], [], _POLL_S)
        if readable:
            line = sys.stdin.buffer.readline()
            open_input = bool(line)
            if line:
                order = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    _become_starter(order)
                running[pid] = order["node_id"]
                _say(event="started", node_id=order["node_id"], pid=pid)
        while running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            _say(event="ended", node_id=running.pop(pid), code=os.waitstatus_to_exitcode(status))


def _become_starter(order: dict[str, Any]) -> None:
    if order["file_limit"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_limit"],) * 2)
    if order["unprivileged"] and os.geteuid() == 0:
        _drop_capabilities()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    code = 1
    try:
        anyio.run(_migrate if order["calls"] is None else _serve_calls, order)
        code = 0
    except MoleculerError as error:
        _say(event="done", node_id=order["node_id"], error=str(error))
    except BaseException:
        logging.getLogger().exception("%s failed", order["node_id"])
    finally:
        os._exit(code)


async def _migrate(order: dict[str, Any]) -> None:
    lines = Lines(order["node_id"])
    counter = _Counter(order["kill_at"], order["moment"])
    counter.watch()
    status = await migrate_once(order["url"], logger=lines.logger, node_id=order["node_id"], budgets=BUDGETS)
    _say(
        event="done",
        node_id=order["node_id"],
        state=status.state,
        reason=status.reason,
        error=status.error,
        pending=[step.name for step in status.steps if step.state != "done"],
        guide_lines=lines.guide_lines(),
        statements=counter.count,
    )


def _drop_capabilities() -> None:
    """Stay root, whose files these are, and obey their modes as everybody does."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, twice 32 bits each
    if ctypes.CDLL(None, use_errno=True).capset(ctypes.byref(header), ctypes.byref(none)) != 0:
        raise OSError(ctypes.get_errno(), "capset failed")


async def _serve_calls(order: dict[str, Any]) -> None:
    async with serving(order["url"], node_id=order["node_id"], budgets=SHORT) as service:
        schema = await service.ask("schema")
        answers: list[Any] = []
        for action, params in order["calls"]:
            try:
                answers.append(await service.ask(action, **params))
            except MoleculerError as error:
                answers.append([error.type, str(error)])
    _say(
        event="done",
        node_id=order["node_id"],
        state=schema["state"],
        reason=schema.get("reason"),
        error=schema.get("error"),
        guide_lines=service.guide_lines(),
        answers=answers,
        log=service.lines,
    )


class _Counter:
    """Counts the statements of the migration, of both dialects, and ends the process at one of them."""

    def __init__(self, kill_at: int | None, moment: str) -> None:
        self.count = 0
        self._kill_at = kill_at
        self._moment = moment

    def watch(self) -> None:
        import aiosqlite

        from services.environments_store.database.postgres_session import PostgresSession

        for owner, names in (
            (PostgresSession, ("fetch", "fetch_one", "fetch_value", "run")),
            (aiosqlite.Connection, ("execute_fetchall",)),
        ):
            for name in names:
                setattr(owner, name, self._counting(getattr(owner, name)))

    def _counting(self, real: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def counted(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            ours = self.count == self._kill_at
            if ours and self._moment == "during":
                # The statement is written at once, before anything else of the loop runs.
                asyncio.get_running_loop().call_soon(_die)
            answer = await real(*arguments, **options)
            if ours:
                _die()
            return answer

        return counted


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _say(**event: Any) -> None:
    """One write, so that lines of several processes never mix."""
    os.write(1, (json.dumps(event) + "\n").encode())


if __name__ == "__main__":
    main()
