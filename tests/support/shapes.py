"""The databases that exist in production, and what must not change in them."""

import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path

import anyio

from tests.support.postgres import PostgresDatabase

__all__ = [
    "BYTES",
    "POSTGRES_SHAPES",
    "SQLITE_SHAPES",
    "Lines",
    "count_inspections",
    "make_sqlite",
    "postgres_sql",
    "rows_of_postgres",
    "rows_of_sqlite",
    "until",
]

FIXTURES = Path(__file__).parents[1] / "fixtures"
POSTGRES_SHAPES = sorted(path.stem for path in (FIXTURES / "postgres").glob("*.sql"))
SQLITE_SHAPES = sorted(path.stem for path in (FIXTURES / "sqlite").glob("*.sql"))

LOOK = "to_regclass($1)"
BYTES = """SELECT string_agg(md5(id || '|' || environment::text || '|' || "environmentUuid" || '|' || "timestamp"::text
 || '|' || "createdAt"::text || '|' || "updatedAt"::text), ' ' ORDER BY id) || ' of ' || count(*) FROM environments"""
COLUMNS = "id, environment, environmentUuid, timestamp, createdAt, updatedAt"


def postgres_sql(shape: str) -> str:
    """The SQL that makes a shape in an empty database."""
    return (FIXTURES / "postgres" / f"{shape}.sql").read_text(encoding="utf-8")


def rows_of_postgres(run_sql: Callable[[str], str]) -> str:
    """A fingerprint of every byte of every row that was there before `deletedAt`."""
    return run_sql(BYTES)


def make_sqlite(shape: str, path: Path) -> None:
    """Make a shape as a file."""
    connection = sqlite3.connect(path)
    try:
        connection.executescript((FIXTURES / "sqlite" / f"{shape}.sql").read_text(encoding="utf-8"))
    finally:
        connection.close()


def rows_of_sqlite(path: Path, table: str = "environments", columns: str = COLUMNS) -> list[tuple[object, ...]]:
    """Every row with the storage type of every value."""
    connection = sqlite3.connect(path)
    try:
        types = ", ".join(f"typeof({name})" for name in columns.split(", "))
        return connection.execute(f"SELECT {columns}, {types} FROM {table} ORDER BY 1").fetchall()
    finally:
        connection.close()


class Lines(logging.Handler):
    """The messages that a logger has written; `warnings` are those of that level, and above."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.messages: list[str] = []
        self.warnings: list[str] = []
        self.logger = logging.getLogger(f"test.{name}")
        self.logger.setLevel(logging.DEBUG)
        self.logger.propagate = False
        self.logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
        if record.levelno >= logging.WARNING:
            self.warnings.append(record.getMessage())

    def guide_lines(self) -> list[str]:
        """Those of the guide's four, in their order."""
        return [message for message in self.messages if message[0] in "🔄✅❌" and "index" not in message]


def count_inspections(database: PostgresDatabase) -> Callable[[], int]:
    """Log every statement of the connections made from now on; returns how often the table was looked at since."""
    database.run_sql(f"ALTER DATABASE \"{database.name}\" SET log_statement = 'all'")
    before = database.server.log().count(LOOK)
    return lambda: database.server.log().count(LOOK) - before


async def until(condition: Callable[[], bool], deadline_s: float = 60) -> None:
    """Wait for a condition of this process."""
    pause_s = 0.01
    with anyio.fail_after(deadline_s):
        while not condition():  # the condition is often a server's, which sets no event here
            await anyio.sleep(pause_s)
            pause_s = min(1.5 * pause_s, 0.1)
