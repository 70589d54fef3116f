"""Passwords and keys out of what is shown: URLs, command lines, options."""

import re
from collections.abc import Mapping
from typing import Any

MASK = "***"

_CREDENTIALS = re.compile(r"(?<=://)(?:(?!,\s*\w+://)\S)*@")
"""Everything between `://` and the last `@` of a URL: passwords may hold slashes and `@`, by mistake but in use."""

_BETWEEN_SERVERS = re.compile(r",(?=\s*\w+://)|,(?!(?:(?!,\s*\w+://).)*@)")
"""A comma between two addresses, where either the next scheme follows or no `@`: others are part of a password."""

_PARAMETER = re.compile(r"(?<=[?&])(\w*(?:pass|pwd|secret|token)\w*=)[^&\s]+", re.IGNORECASE)

_DATA = (type(None), str, bool, int, float, Mapping, list, tuple, set, frozenset)

_SECRET = re.compile(r"pass|pwd|secret|token|seed|nkey|credential|private|signature", re.IGNORECASE)
"""Names of options that hold secrets."""


def masked_text(text: str) -> str:
    """A text without the credentials of the URLs in it."""
    return _PARAMETER.sub(rf"\1{MASK}", _CREDENTIALS.sub(f"{MASK}@", text))


def split_servers(text: str) -> list[str]:
    """The addresses in a text, separated by commas."""
    return [server.strip() for server in _BETWEEN_SERVERS.split(text) if server.strip()]


def masked_servers(text: str) -> str:
    """NATS addresses in full, without passwords and tokens."""
    return ",".join(masked_text(one if "://" in one else f"nats://{one}") for one in split_servers(text))


def masked(value: Any) -> Any:
    """A value as JSON can hold it, without secrets, functions and other objects; of what repeats itself, once."""
    return _masked(value, ())


def _masked(value: Any, outer: tuple[int, ...]) -> Any:
    match value:
        case str():
            return masked_text(value)
        case bool() | int() | float() | None:
            return value
        case _ if id(value) in outer:
            return None
        case Mapping():
            inner = (*outer, id(value))
            return {
                str(key): MASK if _SECRET.search(str(key)) and item else _masked(item, inner)
                for key, item in value.items()
                if isinstance(item, _DATA)
            }
        case list() | tuple() | set() | frozenset():
            return [_masked(item, (*outer, id(value))) for item in value if isinstance(item, _DATA)]
        case _:
            return None
