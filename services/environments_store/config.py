"""The settings of the command lines: from the environment, with flags winning."""

import re
from collections.abc import Mapping
from typing import Any, get_args

import msgspec

from broker.logs import LogFormat, LogLevel
from services.environments_store.database.location import masked, read_location
from services.environments_store.defaults import DatabaseSettings
from services.environments_store.errors import ConfigError

__all__ = ["Config", "LogFormat", "LogLevel", "load_config", "masked_servers"]

_LONGEST_RETENTION_DAYS = 36_500  # a hundred years: far enough, and every database can compute with it
_LARGEST_POOL = 1_000  # far beyond what one process can use; PostgreSQL's own default is 100 for all of them
_SERVER = re.compile(
    r"(?:nats|tls|ws|wss)://(?:[^/@]*@)?(?P<host>\[[0-9a-fA-F:.]+\]|[^\s/:@\[\]]+)(?::(?P<port>\d{1,5}))?/?\Z"
)


# A comma may stand in a password, too: between two addresses the next one begins after it.
_BETWEEN_SERVERS = r",(?=\s*\w+://)"


_OF_THE_BROKER = {"nats_url": "BROKER_TRANSPORTER", "namespace": "BROKER_NAMESPACE", "node_id": "BROKER_NODE_ID"}
"""What the same settings are called in other programs that hold a broker."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What a node of the service runs with. `node_id` None: the broker makes one of host and process."""

    nats_url: str = "nats://127.0.0.1:4222"
    """NATS's own default port. Several servers of one cluster are separated by commas."""
    database_url: str = "sqlite:///data/environments.sqlite"
    """Where the original keeps its SQLite file by default."""
    namespace: str = ""
    node_id: str | None = None
    log_level: LogLevel = "info"
    log_format: LogFormat = "text"
    database_pool_size: int = DatabaseSettings().pool_size
    """PostgreSQL connections of the node for calls; two more look after the schema and say that it serves."""
    retention_days: int | None = None
    """How long the trash is kept before the service purges it by itself; None: for ever."""

    def __repr__(self) -> str:
        shown = {**msgspec.structs.asdict(self), "nats_url": masked_servers(self.nats_url)}
        shown["database_url"] = masked(self.database_url)
        return f"Config({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def load_config(environ: Mapping[str, str], **flags: Any) -> Config:
    """The settings, checked. A flag that is None and a variable that is empty count as not given.

    Raises ConfigError: one line that names the setting and shows what a right value looks like.
    """
    given: dict[str, Any] = {}
    for name in Config.__struct_fields__:
        if value := environ.get(name.upper()) or environ.get(_OF_THE_BROKER.get(name, "")):
            given[name] = value
    given |= {name: value for name, value in flags.items() if value is not None}
    for name, choices in (("log_level", get_args(LogLevel)), ("log_format", get_args(LogFormat))):
        if name in given:
            given[name] = _one_of(name.upper(), given[name], choices)
    if "retention_days" in given:
        given["retention_days"] = _whole_number(
            "RETENTION_DAYS", given["retention_days"], _LONGEST_RETENTION_DAYS, "a whole number of days", "90"
        )
    if "database_pool_size" in given:
        given["database_pool_size"] = _whole_number(
            "DATABASE_POOL_SIZE", given["database_pool_size"], _LARGEST_POOL, "a number of connections", "10"
        )
    config = Config(**given)
    _check_servers(config.nats_url)
    read_location(config.database_url)
    _check_name("NAMESPACE", config.namespace)
    _check_name("NODE_ID", config.node_id or "")
    return config


def masked_servers(urls: str) -> str:
    """NATS addresses as they may stand in a log: `***` in place of every password and token."""
    return ",".join(map(_masked_server, re.split(_BETWEEN_SERVERS, urls)))


def _masked_server(url: str) -> str:
    scheme, separator, rest = url.partition("://") if "://" in url else ("", "", url)
    _, at, host = rest.rpartition("@")
    return f"{scheme}{separator}{'***@' if at else ''}{host}"


def _one_of(setting: str, value: str, choices: tuple[str, ...]) -> str:
    if value.lower() not in choices:
        raise ConfigError(f"{setting} is '{value}'; it must be one of {', '.join(choices)}.")
    return value.lower()


def _whole_number(setting: str, value: Any, most: int, what: str, right: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", str(value)) or not 1 <= int(value) <= most:
        raise ConfigError(f"{setting} is '{value}'; it must be {what}, from 1 to {most}. Right: {right}.")
    return int(value)


def _check_servers(urls: str) -> None:
    for url in re.split(_BETWEEN_SERVERS, urls):
        match = _SERVER.match(url.strip())
        if match is None or not 0 < int(match["port"] or 4222) < 65536:
            raise ConfigError(
                f"NATS_URL '{masked_servers(url.strip())}' is not a NATS address. A right one looks like"
                " nats://127.0.0.1:4222 or nats://user:password@host:4222; several are separated by commas."
            )


def _check_name(setting: str, value: str) -> None:
    # They become parts of NATS subjects, where a space ends the subject and * and > are wildcards.
    if re.search(r"[\s*>]", value):
        raise ConfigError(f"{setting} '{value}' holds a space, * or >, which NATS does not take. Right: my-name-1.")
