"""The settings of the commands, from the environment and from flags, which take precedence."""

import re
from collections.abc import Mapping
from typing import Any, get_args

import msgspec

from broker.logs import LogFormat, LogLevel
from services.environments_store.database.location import masked, read_location
from services.environments_store.defaults import DatabaseSettings
from services.environments_store.errors import ConfigError

__all__ = ["Config", "LogFormat", "LogLevel", "load_config", "masked_servers"]

_LONGEST_RETENTION_DAYS = 36_500  # a hundred years, which every database can compute with
_LARGEST_POOL = 1_000  # far beyond what one process can use; PostgreSQL's own default is 100 in total
_SERVER = re.compile(
    r"(?:nats|tls|ws|wss)://(?:[^/@]*@)?(?P<host>\[[0-9a-fA-F:.]+\]|[^\s/:@\[\]]+)(?::(?P<port>\d{1,5}))?/?\Z"
)


# A password may contain a comma: only one before another address separates.
_BETWEEN_SERVERS = r",(?=\s*\w+://)"


_OF_THE_BROKER = {"nats_url": "BROKER_TRANSPORTER", "namespace": "BROKER_NAMESPACE", "node_id": "BROKER_NODE_ID"}
"""The names of the same settings in other programs with a broker."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a node. Without `node_id` the broker makes one of host and process."""

    nats_url: str = "nats://127.0.0.1:4222"
    """At NATS's default port. Several servers of one cluster are separated by commas."""
    database_url: str = "sqlite:///data/environments.sqlite"
    """The original's default path."""
    namespace: str = ""
    node_id: str | None = None
    log_level: LogLevel = "info"
    log_format: LogFormat = "text"
    database_pool_size: int = DatabaseSettings().pool_size
    """PostgreSQL connections of the node for calls; two more serve the migration and the serving lock."""
    retention_days: int | None = None
    """How long the trash is kept before the service purges it automatically; None disables that."""

    def __repr__(self) -> str:
        shown = {**msgspec.structs.asdict(self), "nats_url": masked_servers(self.nats_url)}
        shown["database_url"] = masked(self.database_url)
        return f"Config({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def load_config(environ: Mapping[str, str], **flags: Any) -> Config:
    """The validated settings. A flag of None and an empty variable count as not given.

    Raises ConfigError, which names the setting and shows a valid value.
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
    """NATS addresses for a log: `***` in place of every password and token."""
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
        raise ConfigError(f"{setting} is '{value}'; it must be {what}, from 1 to {most}. Example: {right}.")
    return int(value)


def _check_servers(urls: str) -> None:
    for url in re.split(_BETWEEN_SERVERS, urls):
        match = _SERVER.match(url.strip())
        if match is None or not 0 < int(match["port"] or 4222) < 65536:
            raise ConfigError(
                f"NATS_URL '{masked_servers(url.strip())}' is not a NATS address. Examples: nats://127.0.0.1:4222,"
                " nats://user:password@host:4222; separate several by commas."
            )


def _check_name(setting: str, value: str) -> None:
    # They become parts of NATS subjects, where a space ends the subject and * and > are wildcards.
    if re.search(r"[\s*>]", value):
        raise ConfigError(f"{setting} '{value}' contains a space, * or >, which NATS refuses. Example: my-name-1.")
