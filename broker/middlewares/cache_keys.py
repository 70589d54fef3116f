"""Under which key the result of a call is kept (moleculer protocol §12.7), as Moleculer 0.15 makes it.

0.14 does not quote strings, so its nodes find other keys in a cache that they share with these.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from broker.defaults import CACHE_KEY_DIGEST_CHARACTERS
from broker.protocol.javascript import MISSING, dig, epoch_ms, text


def cache_key(
    action: str,
    params: Any,
    meta: Mapping[str, Any],
    headers: Mapping[str, Any],
    *,
    keys: Sequence[str] | None = None,
    max_params_length: int | None = None,
) -> str:
    """`posts.find:…`: what `keys` name, else all params. No keys at all: the action's name alone."""
    if keys is None:
        return f"{action}:{shortened(flatten(params), max_params_length)}"
    if not keys:
        return action
    values = [_value(key, params, meta, headers) for key in keys]
    parts = [flatten(value) for value in values]
    if len(keys) > 1:  # one long value must not hide the others
        parts = [
            shortened(part, max_params_length) if isinstance(value, Mapping | list | tuple) else part
            for part, value in zip(parts, values, strict=True)
        ]
    return f"{action}:{shortened('|'.join(parts), max_params_length)}"


def flatten(value: Any) -> str:
    """A value as one line: `id|2|tags|["a"|"b"]`. Keys stay in their order."""
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, Mapping):
        return "|".join(f"{key}|{flatten(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return f"[{'|'.join(map(flatten, value))}]"
    if isinstance(value, datetime):
        return epoch_ms(value)
    return text(value)


def shortened(body: str, limit: int | None) -> str:
    """A body longer than `limit` characters keeps its beginning and gets a digest of the whole at its end."""
    if not limit or limit < CACHE_KEY_DIGEST_CHARACTERS or len(body) <= limit:
        return body
    digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
    return body[: limit - CACHE_KEY_DIGEST_CHARACTERS] + digest


def _value(key: str, params: Any, meta: Mapping[str, Any], headers: Mapping[str, Any]) -> Any:
    if key.startswith("#"):
        return dig(meta, key[1:])
    if key.startswith("@"):
        return dig(headers, key[1:])
    return MISSING if params is None else dig(params, key)
