"""Fixtures that every test can use: the real servers, and names that no other test has.

The servers of a session are started by the first test that asks for one and stopped at its end. They are children
that end with the test run however it ends (tests/support/child.py).
"""

import contextlib
import fcntl
import gc
import os
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.nats_server import NatsServer
from tests.support.node import INTEROP, SEQUELIZE, install_packages
from tests.support.original import Originals, originals
from tests.support.postgres import PostgresDatabase, PostgresServer

# A busy machine is no failure.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_configure(config: pytest.Config) -> None:
    """Let the many processes of a run share what one of them compiled, also where Python is told not to keep it."""
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
        folder = str(config.rootpath / ".pytest_cache" / "bytecode")
        os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = folder
        sys.dont_write_bytecode = False


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Of the processes of a run one compiles the tests, the others wait and read what it has written.

    What is collected lives as long as the process: the garbage collector need not look at it.
    """
    with Path(__file__).open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(lock, fcntl.LOCK_SH)
        gc.disable()
        try:
            return (yield)
        finally:
            gc.freeze()
            gc.enable()
            gc.set_threshold(10_000)  # new objects; by default 700, which costs a twentieth of the run


NatsServerFactory = Callable[..., NatsServer]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """asyncpg and nats-py run on asyncio alone."""
    return "asyncio"


@pytest.fixture
def namespace() -> str:
    """A Moleculer namespace of the test's own, so that tests can share a server."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def session_nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """The server behind `nats_url`: shared, so never stopped, paused or restarted by a test."""
    with NatsServer(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture(scope="session")
def nats_url(session_nats: NatsServer) -> str:
    """The URL of the shared NATS server; use it with `namespace`."""
    return session_nats.url


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A NATS server of the test's own, to stop, kill, pause and restart."""
    with NatsServer(tmp_path / "nats") as server:
        yield server


@pytest.fixture
def make_nats_server(tmp_path: Path) -> Iterator[NatsServerFactory]:
    """`make_nats_server(max_payload=4096)`: running servers of the test's own with settings; stopped after it."""
    with contextlib.ExitStack() as servers:

        def make(**options: int | str | bool) -> NatsServer:
            folder = tmp_path / f"nats-{uuid.uuid4().hex[:8]}"
            return servers.enter_context(NatsServer(folder, **options))

        yield make


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The server behind `postgres_url`: shared, so never stopped by a test. Make a PostgresServer to stop one."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_admin_url(postgres_server: PostgresServer) -> str:
    """The superuser's URL of the shared server's database `postgres`."""
    return postgres_server.admin_url


@pytest.fixture
def postgres_database(postgres_server: PostgresServer) -> Iterator[PostgresDatabase]:
    """A fresh empty database, with `run_sql`, `create_role` and `log`; dropped after the test."""
    database = PostgresDatabase(postgres_server)
    yield database
    database.drop()


@pytest.fixture
def postgres_url(postgres_database: PostgresDatabase) -> str:
    """The superuser's URL of a fresh empty database."""
    return postgres_database.url


@pytest.fixture(scope="session")
def js_modules() -> Path:
    """The npm packages of tests/interop, installed on first use. Needed by every test that starts a JS node."""
    return install_packages(INTEROP)


@pytest.fixture(scope="session")
def sequelize_modules() -> Path:
    """The npm packages of tests/sequelize, installed on first use. Needed by every test that starts the original."""
    return install_packages(SEQUELIZE)


@pytest.fixture(scope="module")
async def original_process(sequelize_modules: Path, anyio_backend: str) -> AsyncIterator[Originals]:
    """A process of the original application, shared by the tests of a module: each opens applications of its own."""
    async with originals() as process:
        yield process
