"""One PostgreSQL connection of its own, for the migration: never pooled, so what it SETs or locks stays with it."""

import functools
import logging
import re
import ssl
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeAlias

import anyio
import anyio.to_thread
import asyncpg
from asyncpg.connect_utils import SessionAttribute

from services.environments_store.database.base import Row
from services.environments_store.database.failures import (
    BAD_ADDRESS,
    LOST_STATES,
    REFUSED_BY_POOLER,
    StatementFailure,
    Translation,
)
from services.environments_store.database.location import Location, read_location

__all__ = ["Connection", "PostgresSession", "Server", "connect", "driver_failures", "probe"]

logger = logging.getLogger(__name__)

# Text, because these classes take a parameter in their stubs only.
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

FUNCTION = re.compile(r"PL/\w+ function \"?([^\"(]+)")
DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, EOFError)


PROBE = """
SELECT pg_backend_pid() AS pid, current_setting('server_version_num')::int AS version,
       (SELECT min(l) FROM (SELECT rolconnlimit FROM pg_roles WHERE rolname = session_user
                            UNION ALL SELECT datconnlimit FROM pg_database WHERE datname = current_database()) AS x (l)
        WHERE l >= 0 AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = session_user)) AS connection_limit
""".strip()


class Server(NamedTuple):
    """The server of a connection. `pooled`: it is behind a transaction pooler, so the server process may change with
    each transaction. `version` is the server's number, 180006 for 18.6. `connection_limit`: how many connections the
    role and the database allow, None without a limit of their own."""

    pooled: bool
    version: int
    connection_limit: int | None


def driver_failures(*, sent: bool = True) -> AbstractContextManager[None]:
    """Turn every exception of asyncpg and of the network into a StatementFailure."""
    return _FAILURES_SENT if sent else _FAILURES_UNSENT


def _failure(error: BaseException, *, sent: bool) -> StatementFailure:
    if isinstance(error, asyncpg.PostgresError):
        state, context = error.sqlstate or "", error.context or ""
        if state == "08P01" and "startup parameter" in (error.message or ""):
            state = REFUSED_BY_POOLER
        function = FUNCTION.search(context)
        return StatementFailure(
            error.message or str(error),
            sqlstate=state or None,
            lost=state.startswith("08") or state in LOST_STATES,
            sent=sent,
            hint=error.hint,
            constraint=error.constraint_name,
            function=function.group(1) if function else None,
            raised=context.partition("\n")[0].endswith(" at RAISE"),
        )
    if isinstance(error, (asyncpg.DataError, asyncpg.exceptions.ClientConfigurationError)):
        # asyncpg refused an argument itself: nothing was sent, and sending it again would not help.
        return StatementFailure(" ".join(str(error).split()), sqlstate=BAD_ADDRESS, sent=sent)
    timed_out = isinstance(error, TimeoutError)
    text = str(error) or ("no answer in time" if timed_out else type(error).__name__)
    if type(error) in (asyncpg.InterfaceError, asyncpg.InternalClientError):
        text = "the connection ended"  # the driver's own words are about its inner states
    if isinstance(error, ssl.SSLError):
        text = _of_ssl(error)
    return StatementFailure(text, lost=True, sent=sent, timed_out=timed_out)


_FAILURES_SENT = Translation(DRIVER_ERRORS, functools.partial(_failure, sent=True))
_FAILURES_UNSENT = Translation(DRIVER_ERRORS, functools.partial(_failure, sent=False))


def _of_ssl(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the certificate of the server is not accepted: {error.verify_message.rstrip('.')}. `sslrootcert` in the"
            " address has to name the file of the authority that has signed it, and with sslmode=verify-full the host"
            " has to be one that the certificate names"
        )
    return f"{error} (look at the files that `sslrootcert`, `sslcert` and `sslkey` in the address name)"


def _check_files(location: Location) -> None:
    """OpenSSL does not tell which file it misses. Raises StatementFailure, which does."""
    for parameter, name in location.files:
        if name == "system":
            raise StatementFailure(
                f"{parameter}=system is known to libpq alone: name the file of the system's certificates, such as"
                " /etc/ssl/certs/ca-certificates.crt",
                sqlstate=BAD_ADDRESS,
                sent=False,
            )
        try:
            with open(name, "rb"):
                pass
        except OSError as error:
            raise StatementFailure(
                f"the file '{name}' of `{parameter}` cannot be read: {error.strerror}", sqlstate=BAD_ADDRESS, sent=False
            ) from error


@functools.cache
def _name_left_out(parameters: tuple[str, ...]) -> None:
    """Once in a process, for all its connections."""
    if parameters:
        logger.info(
            "Left out of the address of the database, as meant for other drivers: %s. DATABASE_POOL_SIZE sets how many"
            " connections there are; a pooler is recognised",
            ", ".join(parameters),
        )


async def connect(url: str, *, application_name: str, timeout_s: float) -> tuple[Connection, SessionAttribute]:
    """Connect to a server that takes writes when several are given, else to whichever answers.

    Only settings that a transaction pooler lets through are sent at start-up. A caller that is cancelled is let go when
    the attempt has ended, which takes `timeout_s` at most. Raises StatementFailure.
    """
    location = read_location(url)
    _name_left_out(location.left_out)
    if location.files:
        await anyio.to_thread.run_sync(_check_files, location)
    several = location.several_hosts
    attempts = (SessionAttribute.read_write, SessionAttribute.any) if several else (SessionAttribute.any,)
    for attributes in attempts:
        try:
            # Cancelled half-way, asyncpg leaves a future behind whose error asyncio logs: it may finish, or time out.
            with driver_failures(sent=False), anyio.CancelScope(shield=True):
                connection = await asyncpg.connect(
                    location.dsn,
                    timeout=timeout_s,
                    statement_cache_size=0,
                    server_settings={"TimeZone": "UTC", "application_name": application_name},
                    target_session_attrs=attributes,
                )
                return connection, attributes
        except StatementFailure:
            # None takes writes, or the one that does is away: one that reads is better than none.
            if attributes is attempts[-1]:
                raise
    raise AssertionError("the last attempt returns or raises")


class PostgresSession:
    """A connection that runs statements one by one. Every method raises StatementFailure and nothing else.

    `server.pooled`: session locks and SET mean nothing then.
    """

    def __init__(self, connection: Connection, server: Server, *, answer_timeout_s: float) -> None:
        self._connection = connection
        self._answer_timeout_s = answer_timeout_s
        self.server = server

    @property
    def pooled(self) -> bool:
        return self.server.pooled

    @property
    def version(self) -> int:
        return self.server.version

    @classmethod
    async def connect(
        cls, url: str, *, application_name: str, connect_timeout_s: float, answer_timeout_s: float
    ) -> "PostgresSession":
        connection, _ = await connect(url, application_name=application_name, timeout_s=connect_timeout_s)
        try:
            server = await probe(connection, answer_timeout_s)
        except BaseException:
            connection.terminate()
            raise
        return cls(connection, server, answer_timeout_s=answer_timeout_s)

    @property
    def closed(self) -> bool:
        return self._connection.is_closed()

    async def fetch(self, query: str, *arguments: object) -> Sequence[Row]:
        with driver_failures():
            return await self._connection.fetch(query, *arguments, timeout=self._answer_timeout_s)

    async def fetch_one(self, query: str, *arguments: object) -> Row | None:
        with driver_failures():
            return await self._connection.fetchrow(query, *arguments, timeout=self._answer_timeout_s)

    async def fetch_value(self, query: str, *arguments: object) -> Any:
        with driver_failures():
            return await self._connection.fetchval(query, *arguments, timeout=self._answer_timeout_s)

    async def run(self, script: str, *, unbounded: bool = False) -> None:
        """Send one text by the simple protocol, which leaves no prepared statement, portal or snapshot behind.

        `unbounded` is for an index build of unknown duration; the server ends it when this client dies.
        """
        with driver_failures():
            await self._connection.execute(script, timeout=None if unbounded else self._answer_timeout_s)

    async def answers(self, within_s: float) -> bool:
        """Whether the server answers so soon. When it does not, the connection is of use no more: close it."""
        try:
            with driver_failures():
                await self._connection.execute("SELECT 1", timeout=within_s)
        except StatementFailure as failure:
            if not failure.timed_out:
                raise
            return False
        return True

    async def close(self) -> None:
        """Close quietly, whatever state the connection is in, also while the caller is being cancelled."""
        with anyio.CancelScope(shield=True):
            try:
                with driver_failures():
                    await self._connection.close(timeout=self._answer_timeout_s)
            except StatementFailure:
                self._connection.terminate()


async def probe(connection: Connection, timeout_s: float) -> Server:
    """Look at the server. The process id that a pooler gives at start-up is its own invention; a query gives the real
    one."""
    with driver_failures():
        row = await connection.fetchrow(PROBE, timeout=timeout_s)
    if row is None:
        raise StatementFailure("the server answered its own version with nothing", lost=True)
    pooled = row["pid"] != connection.get_server_pid()
    return Server(pooled, row["version"], None if pooled else row["connection_limit"])
