"""A server process of the tests: started as a child, its output in a file, stopped by its pid."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

__all__ = ["START_DEADLINE_S", "ServerFailedError", "ServerProcess", "child_command", "script_path"]

# Generous: a test machine may be busy. A server that is up is noticed at once.
START_DEADLINE_S = 60.0
_STOP_DEADLINE_S = 30.0
_POLL_S = 0.02
_CHILD = Path(__file__).with_name("child.py")
Result = TypeVar("Result")


class ServerFailedError(Exception):
    """A server did not start; the end of its output is in the message."""


def child_command(command: Sequence[str | Path], user: tuple[int, int] | None = None) -> list[str]:
    """`command`, made to end when this process ends and to run as `user` (uid, gid)."""
    identity = "-" if user is None else f"{user[0]}:{user[1]}"
    return [sys.executable, "-I", "-S", str(_CHILD), identity, *map(str, command)]


def script_path(name: str) -> Path:
    """A program that a wheel put beside this Python, whether or not that folder is on PATH."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise ServerFailedError(f"There is no '{name}' beside {sys.executable}. Install the project with '.[test]'.")
    return path


class ServerProcess:
    """One run of a server."""

    def __init__(
        self,
        command: Sequence[str | Path],
        log: Path,
        *,
        user: tuple[int, int] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._name = Path(command[0]).name
        self._log = log
        self._log_start = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                child_command(command, user),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment} if environment else None,
                cwd=log.parent,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def written(self) -> int:
        """How many bytes it and its earlier runs have written."""
        return self._log.stat().st_size

    def output(self, start: int = 0) -> str:
        """What this run has written so far; from byte `start` on of all that was written."""
        with self._log.open("rb") as log:
            log.seek(max(self._log_start, start))
            return log.read().decode("utf-8", "replace")

    def wait_until(self, ready: Callable[[], Result | None]) -> Result:
        """The first result of `ready` that is not None."""
        deadline = time.monotonic() + START_DEADLINE_S
        while True:
            result = ready()
            if result is not None:
                return result
            if not self.running or time.monotonic() > deadline:
                why = "is still not ready" if self.running else f"ended with {self._process.returncode}"
                raise ServerFailedError(f"{self._name} {why}. Its output:\n{self.output()[-4000:]}")
            time.sleep(_POLL_S)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Ends it and waits until it is gone; a server that ignores `how` is killed."""
        if self.running:
            self._process.send_signal(how)
        try:
            self._process.wait(_STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
