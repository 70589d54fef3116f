"""A page of commands and their output: run from top to bottom, as a person on a terminal would see it.

Every line of a `console` block that begins with `$ ` is a command for the shell, run in one folder against one
database; what follows it is its output. `<!-- database: SHAPE -->` fills the database with a shape of production,
`<!-- sql: … -->` runs SQL that readers need not see, and `<!-- stop -->` stops the service that `environments-store
serve` has started.
"""

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.postgres import PostgresDatabase
from tests.support.shapes import postgres_sql
from tests.support.warm import warm_programs

__all__ = ["run_page"]

_DEADLINE_S = 120
_MARK = re.compile(r"^(```console\n.*?^```$|<!-- (?:database|sql|stop)[^\n]* -->$)", re.MULTILINE | re.DOTALL)
_ANSI = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
_LAST_LOG_LINE = "index created successfully"
_SHOWN_ADDRESS = "postgresql://postgres:***@db.example:5432/environments"


def run_page(page: str, database: PostgresDatabase, nats_url: str, folder: Path) -> str:
    """The page with the output of this run."""
    with contextlib.closing(_Runner(database, nats_url, folder)) as runner:
        parts = _MARK.split(page)
        return "".join(runner.run(part) if _MARK.fullmatch(part) else part for part in parts)


class _Runner:
    def __init__(self, database: PostgresDatabase, nats_url: str, folder: Path) -> None:
        self._database = database
        self._folder = folder
        self._service: subprocess.Popen[str] | None = None
        programs = os.pathsep.join(map(str, (warm_programs(), Path(sys.executable).parent, database.server.programs)))
        self._environment = {
            **{name: value for name, value in os.environ.items() if name not in ("RETENTION_DAYS", "NODE_ID")},
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "DATABASE_URL": database.url,
            "NATS_URL": nats_url,
            "TERM": "dumb",
            "COLUMNS": "120",
            "LINES": "40",  # without it the width does not count on a dumb terminal
        }

    def run(self, part: str) -> str:
        """A block with its output, or a mark, done."""
        if part.startswith("```"):
            commands = [line for line in part.splitlines() if line.startswith("$ ")]
            return "\n".join(["```console", *(self._shown(command) for command in commands), "```"])
        kind, _, text = part.removeprefix("<!-- ").removesuffix(" -->").partition(": ")
        if kind == "stop":
            self.close()
        else:
            self._database.run_sql(postgres_sql(text) if kind == "database" else text)
        return part

    def close(self) -> None:
        service, self._service = self._service, None
        if service is not None:
            os.killpg(service.pid, signal.SIGTERM)
            service.communicate(timeout=_DEADLINE_S)

    def _shown(self, command: str) -> str:
        text = command.removeprefix("$ ")
        output = self._serve(text) if text.startswith("environments-store serve") else self._on_terminal(text)
        output = re.sub(r"postgresql://postgres:\*\*\*@127\.0\.0\.1:\d+/\w+", _SHOWN_ADDRESS, output)
        lines = [line.rstrip() for line in _ANSI.sub("", output.replace("\r", "")).splitlines()]
        return "\n".join([command, *lines])

    def _serve(self, command: str) -> str:
        self._service = subprocess.Popen(
            ["sh", "-c", command],
            stdout=subprocess.PIPE,
            text=True,
            env=self._environment,
            cwd=self._folder,
            start_new_session=True,
        )
        assert self._service.stdout is not None
        lines: list[str] = []
        while not lines or _LAST_LOG_LINE not in lines[-1]:
            line = self._service.stdout.readline()
            assert line, f"the service ended: {lines}"
            lines.append(line)
        return "".join(lines)

    def _on_terminal(self, command: str) -> str:
        outside, inside = pty.openpty()
        process = subprocess.Popen(
            ["sh", "-c", command],
            stdin=inside,
            stdout=inside,
            stderr=inside,
            env=self._environment,
            cwd=self._folder,
        )
        os.close(inside)
        output = b"".join(_read_all(outside))
        os.close(outside)
        process.wait(_DEADLINE_S)
        return output.decode()


def _read_all(terminal: int) -> Iterator[bytes]:
    while True:
        try:
            yield os.read(terminal, 65_536)
        except OSError:  # the other side is closed
            return
