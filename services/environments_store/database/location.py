"""A database URL, understood: which dialect, which file, and how it is shown to a person without its password."""

import re
from pathlib import Path
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import msgspec

from services.environments_store.database.base import Dialect
from services.environments_store.errors import ConfigError

__all__ = ["OF_LIBPQ", "Location", "masked", "read_location"]

EXAMPLES = (
    "Right ones look like postgresql://user:password@host:5432/database, sqlite:///data/environments.sqlite (relative) "
    "or sqlite:////var/lib/environments.sqlite (absolute)."
)
OF_LIBPQ = re.compile(
    r"connect_timeout|keepalives(_idle|_interval|_count)?|tcp_user_timeout|channel_binding|gssencmode|require_auth"
    r"|sslcompression|sslcertmode|sslsni|requirepeer|load_balance_hosts|fallback_application_name"
)
"""Parameters by which psql and pg_dump handle their own connection. asyncpg would send them to the server, which
refuses what it does not know; our connections have times of their own (`defaults.py`)."""
OF_OTHERS = re.compile(
    r"pgbouncer|connection_limit|pool_timeout|socket_timeout|(prepared_)?statement_cache_size|statement_cache_capacity"
    r"|prepared_statements|prepareThreshold|pool|pool_(size|min_conns|max_conns|mode)|sslaccept|uselibpqcompat|supa"
)
"""The same of Prisma, SQLAlchemy, pgx, JDBC, Rails and Supabase, whose addresses are often shared with this service."""
SCHEMA = re.compile(r"schema|currentSchema")
"""What Prisma and JDBC call the search_path."""
PASSWORD_PARAMETERS = re.compile(r"(?i)\b(password|sslpassword|passfile)=[^&]*")


FILES_OF_SSL = ("sslrootcert", "sslcert", "sslkey", "sslcrl")


class Location(msgspec.Struct, frozen=True, kw_only=True):
    """Where a database is. `label` is the URL without its password, and `dsn` what asyncpg takes of it; `parameters`
    are those after its `?`, without those of other drivers, which are `left_out`. `files` are the parameters that name
    files for SSL, each with its file; `path` and `read_only` belong to SQLite."""

    dialect: Dialect
    url: str
    dsn: str = ""
    label: str
    path: Path | None = None
    read_only: bool = False
    several_hosts: bool = False
    files: tuple[tuple[str, str], ...] = ()
    parameters: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def read_location(url: str) -> Location:
    """Take a URL apart. Raises ConfigError, one line that shows what a right one looks like."""
    scheme = url.split(":", 1)[0].lower()
    if scheme in ("postgresql", "postgres"):
        return _postgres(url)
    if scheme == "sqlite":
        return _sqlite(url)
    raise ConfigError(f"'{masked(url)}' is not a database URL. {EXAMPLES}")


def masked(url: str) -> str:
    """The URL as it may stand in a log: `***` in place of every password."""
    text = PASSWORD_PARAMETERS.sub(lambda match: f"{match.group(1)}=***", url)
    scheme, separator, rest = text.partition("://")
    authority, slash, path = rest.partition("/")
    credentials, at, hosts = authority.rpartition("@")
    if not separator or not at:
        # Two slashes are missing, or one stands inside a password: show nothing between the scheme and the last "@".
        before, at, after = text.rpartition("@")
        return f"{before.partition(':')[0]}{separator or ':'}***@{after}" if at and ":" in before else text
    user, colon, _ = credentials.partition(":")
    return f"{scheme}{separator}{user}{':***' if colon else ''}@{hosts}{slash}{path}"


def _postgres(url: str) -> Location:
    try:
        parts = urlsplit(url)
        hosts = parts.netloc.rpartition("@")[2].split(",")
        for host in hosts:
            _check_port(host)
    except ValueError as error:
        raise ConfigError(f"'{masked(url)}' is not a database URL: {error}. {EXAMPLES}") from None
    if not url.split(":", 1)[1].startswith("//") or (parts.netloc == "" and not _names_a_socket(parts)):
        raise ConfigError(f"'{masked(url)}' names no host. {EXAMPLES}")
    asked = parse_qs(parts.query)
    address, _, query = url.partition("?")
    parameters, left_out = _sort_out(query)
    kept = "&".join(one for one in parameters if not OF_LIBPQ.fullmatch(one.partition("=")[0]))
    return Location(
        dialect="postgresql",
        url=url,
        dsn=f"{address}?{kept}" if kept else address,
        parameters=parameters,
        left_out=left_out,
        label=masked(url),
        several_hosts=len(hosts) > 1,
        files=tuple((name, asked[name][-1]) for name in FILES_OF_SSL if name in asked),
    )


def _sort_out(query: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The parameters to keep, as they are, and the names of those that only other drivers know."""
    kept, left_out = [], []
    for parameter in filter(None, query.split("&")):
        name, _, value = parameter.partition("=")
        if OF_OTHERS.fullmatch(name) or (SCHEMA.fullmatch(name) and value == "public"):
            left_out.append(name)
        else:
            kept.append(f"search_path={value}" if SCHEMA.fullmatch(name) else parameter)
    return tuple(kept), tuple(left_out)


def _check_port(host: str) -> None:
    port = re.sub(r"^\[.*\]", "", host).rpartition(":")[2] if ":" in re.sub(r"^\[.*\]", "", host) else ""
    if port and not (port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"'{port}' is not a port")


def _names_a_socket(parts: SplitResult) -> bool:
    return "host" in parse_qs(parts.query)


def _sqlite(url: str) -> Location:
    rest = url.partition(":")[2]
    path, _, query = rest.partition("?")
    if not path.startswith("///"):
        raise ConfigError(f"'{masked(url)}' needs three slashes before the path of the file. {EXAMPLES}")
    name = unquote(path[3:])
    if not name or name.startswith(":memory:"):
        raise ConfigError(
            f"'{url}' names no file: a database in memory would be lost at the end, and no other process could use it."
            f" {EXAMPLES}"
        )
    if "\0" in name:
        raise ConfigError(f"The path in '{url!r}' holds a NUL. {EXAMPLES}")
    mode = parse_qs(query).get("mode", ["rwc"])[0]
    if query and (mode not in ("ro", "rwc") or set(parse_qs(query)) != {"mode"}):
        raise ConfigError(f"'{url}': a SQLite URL takes one parameter alone, mode=ro, to read only. {EXAMPLES}")
    return Location(dialect="sqlite", url=url, label=url, path=Path(name), read_only=mode == "ro")
