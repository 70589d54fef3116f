"""PgBouncer, where the machine has it on PATH: the tests of poolers then run through it as well as through our own."""

import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from tests.support.ports import LOOPBACK, free_port
from tests.support.postgres import PostgresServer
from tests.support.postgres_pooler import PostgresPooler
from tests.support.servers import ServerProcess

__all__ = ["POOLERS", "pooled_url"]

POOLERS = ["our pooler", *(["pgbouncer"] if shutil.which("pgbouncer") else [])]

_CONFIGURATION = """\
[databases]
* = host={host} port={server_port}
[pgbouncer]
listen_addr = {host}
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/users
pool_mode = transaction
default_pool_size = {connections}
"""


@asynccontextmanager
async def pooled_url(kind: str, server: PostgresServer, url: str, connections: int = 2) -> AsyncIterator[str]:
    """The URL of the same database through a transaction pooler with so many connections to it."""
    if kind == "our pooler":
        async with PostgresPooler(url, connections=connections).running() as pooler:
            yield pooler.url
        return
    with _pgbouncer(server, url, connections) as port:
        target = urlsplit(url)
        yield urlunsplit(target._replace(netloc=f"{target.netloc.rpartition('@')[0]}@{LOOPBACK}:{port}"))


@contextmanager
def _pgbouncer(server: PostgresServer, url: str, connections: int) -> Iterator[int]:
    program, port, target = shutil.which("pgbouncer"), free_port(), urlsplit(url)
    assert program is not None
    with tempfile.TemporaryDirectory(prefix="environments-store-pgbouncer-") as name:
        folder = Path(name)
        places = {"host": LOOPBACK, "server_port": server.port, "port": port, "folder": folder}
        text = _CONFIGURATION.format(**places, connections=connections)
        (folder / "pgbouncer.ini").write_text(text)
        (folder / "users").write_text(f'"{unquote(target.username or "")}" "{unquote(target.password or "")}"\n')
        for path in (folder, *folder.iterdir()):
            if server.user is not None:
                os.chown(path, *server.user)
        process = ServerProcess([program, folder / "pgbouncer.ini"], folder / "log", user=server.user)
        try:
            process.wait_until(lambda: _answers(port))
            yield port
        finally:
            process.stop()


def _answers(port: int) -> bool | None:
    try:
        socket.create_connection((LOOPBACK, port), timeout=1).close()
    except OSError:
        return None
    return True
