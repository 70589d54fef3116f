"""Processes of a test: started, read line by line, and stopped by pid; never left behind.

    async with start_python("-m", "tests.somewhere", environment={"NATS_URL": nats_url}) as process:
        line = await process.line("ready")
        await process.kill()

Lines of stdout and stderr are kept in the order of their arrival; every failure shows them.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import anyio
import anyio.abc
from anyio.streams.text import TextReceiveStream

from tests.support.servers import child_command
from tests.support.warm import PROGRAMS, forked_pid, warm_command

__all__ = ["DEADLINE_S", "REPOSITORY", "Line", "Process", "ProcessFailedError", "run_python", "start", "start_python"]

REPOSITORY = Path(__file__).parents[2]
# For operations that take moments: generous, since a test machine may be busy. No test asserts it.
DEADLINE_S = 60.0
_STOP_DEADLINE_S = 30.0
_LINES_SHOWN = 100
_CHARACTERS_SHOWN = 1000
# Settings of a developer's shell must not reach the process under test.
_SETTINGS = ("NATS_URL", "DATABASE_URL", "NAMESPACE", "NODE_ID", "LOG_LEVEL", "LOG_FORMAT")


class ProcessFailedError(Exception):
    """A process did not do what the test waited for; its last lines are in the message."""


@dataclass(frozen=True)
class Line:
    source: Literal["stdout", "stderr"]
    text: str


class Process:
    """A running process. Made by `start` and `start_python`."""

    def __init__(self, name: str, process: anyio.abc.Process, *, warm: bool = False) -> None:
        self.name = name
        self._warm = warm
        self.lines: list[Line] = []
        self._process = process
        self._open_outputs = 2
        self._news = anyio.Event()

    @property
    def pid(self) -> int:
        """The pid of the program; for a warm command that has not begun, of the process that forwards signals to it."""
        return (self._warm and forked_pid(self._process.pid)) or self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    @property
    def stdout(self) -> list[str]:
        return [line.text for line in self.lines if line.source == "stdout"]

    @property
    def stderr(self) -> list[str]:
        return [line.text for line in self.lines if line.source == "stderr"]

    async def line(self, wanted: str | Callable[[str], bool], *, after: int = 0, deadline_s: float = DEADLINE_S) -> str:
        """The first line, from number `after` on, that contains `wanted` (or for which it is true)."""
        holds = wanted if callable(wanted) else lambda text: wanted in text
        seen = after
        with anyio.move_on_after(deadline_s):
            while True:
                news = self._news
                for number in range(seen, len(self.lines)):
                    if holds(self.lines[number].text):
                        return self.lines[number].text
                seen = len(self.lines)
                if not self._open_outputs:
                    await self._process.wait()
                    raise ProcessFailedError(self.report(f"ended before it printed {wanted!r}"))
                await news.wait()
        raise ProcessFailedError(self.report(f"did not print {wanted!r} within {deadline_s:g} s"))

    async def write_line(self, text: str) -> None:
        """Sends one line to its stdin."""
        if self._process.stdin is None:
            raise ProcessFailedError(self.report("has no stdin"))
        try:
            await self._process.stdin.send(text.encode() + b"\n")
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise ProcessFailedError(self.report("does not read its stdin any more")) from error

    def send_signal(self, number: signal.Signals) -> None:
        """Send it by pid; does nothing if the process has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def wait(self, deadline_s: float = DEADLINE_S) -> int:
        """Its exit code (negative: the signal that ended it), after all its output has been read."""
        with anyio.move_on_after(deadline_s):
            while self._open_outputs:
                await self._news.wait()
            return await self._process.wait()
        raise ProcessFailedError(self.report(f"did not end within {deadline_s:g} s"))

    async def terminate(self) -> int:
        """SIGTERM, as an operator or Docker stops it; returns the exit code."""
        self.send_signal(signal.SIGTERM)
        return await self.wait()

    async def kill(self) -> int:
        """SIGKILL: the process cannot clean up."""
        self.send_signal(signal.SIGKILL)
        return await self.wait()

    def report(self, what: str) -> str:
        """A failure's text: what happened, and the last lines of the process."""
        shown = self.lines[-_LINES_SHOWN:]
        lines = "\n".join(f"  {line.source}: {line.text[:_CHARACTERS_SHOWN]}" for line in shown)
        return f"The process '{self.name}' (pid {self.pid}, exit code {self.returncode}) {what}. Its output:\n{lines}"

    async def _read(self, source: Literal["stdout", "stderr"], stream: anyio.abc.ByteReceiveStream) -> None:
        rest = ""
        async for text in TextReceiveStream(stream, errors="replace"):
            *complete, rest = (rest + text).split("\n")
            self._add(source, complete)
        self._open_outputs -= 1
        self._add(source, [rest] if rest else [])

    def _add(self, source: Literal["stdout", "stderr"], texts: Sequence[str]) -> None:
        self.lines.extend(Line(source, text) for text in texts)
        news, self._news = self._news, anyio.Event()
        news.set()

    async def _end(self) -> None:
        if self.returncode is None:
            self.send_signal(signal.SIGCONT)  # a frozen process does not handle SIGTERM
            self.send_signal(signal.SIGTERM)
            with anyio.move_on_after(_STOP_DEADLINE_S):
                await self._process.wait()
        if self.returncode is None:
            self.send_signal(signal.SIGKILL)
            await self._process.wait()


@contextlib.asynccontextmanager
async def start(
    *command: str | Path,
    environment: Mapping[str, str] | None = None,
    folder: Path = REPOSITORY,
    name: str = "",
    warm: bool = False,
) -> AsyncIterator[Process]:
    """Runs `command`; stops it at the end of the block if it still runs."""
    opened = await anyio.open_process(
        child_command(command), stdin=subprocess.PIPE, env=_environment(environment), cwd=folder
    )
    process = Process(name or " ".join(map(str, command)), opened, warm=warm)
    assert opened.stdout is not None
    assert opened.stderr is not None
    async with opened, anyio.create_task_group() as readers:
        readers.start_soon(process._read, "stdout", opened.stdout)
        readers.start_soon(process._read, "stderr", opened.stderr)
        try:
            yield process
        finally:
            with anyio.CancelScope(shield=True):
                await process._end()
            readers.cancel_scope.cancel()  # a grandchild may still hold the outputs open
            sys.stderr.write(process.report("was part of this test") + "\n")  # pytest shows it for a failed test


def start_python(
    *arguments: str | Path,
    environment: Mapping[str, str] | None = None,
    folder: Path = REPOSITORY,
    name: str = "",
    warm: bool = True,
) -> contextlib.AbstractAsyncContextManager[Process]:
    """Runs this Python with `arguments`: `"-m", "services.environments_store", "serve"`.

    A known program is a warm command, unless signals that cannot be passed on must reach it: to freeze it.
    """
    known = warm and arguments[0] == "-m" and arguments[1] in PROGRAMS
    command = warm_command(*map(str, arguments[1:])) if known else [sys.executable, *arguments]
    return start(*command, environment=environment, folder=folder, name=name, warm=known)


async def run_python(
    *arguments: str | Path,
    environment: Mapping[str, str] | None = None,
    folder: Path = REPOSITORY,
    deadline_s: float = DEADLINE_S,
) -> Process:
    """Runs this Python to its end; the result has `returncode`, `stdout` and `stderr`."""
    async with start_python(*arguments, environment=environment, folder=folder) as process:
        await process.wait(deadline_s)
    return process


def _environment(changes: Mapping[str, str] | None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _SETTINGS}
    return {**kept, "PYTHONUNBUFFERED": "1", **(changes or {})}
