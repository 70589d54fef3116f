"""Answer from the cache instead of running an action (moleculer protocol §12.7).

Keys are those of Moleculer 0.15. 0.14 does not quote strings, so its nodes find other keys in a cache that they share
with these.
"""

import base64
import contextlib
import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from broker.cancellation import settle
from broker.context import Context, Next
from broker.defaults import CACHE_KEY_DIGEST_CHARACTERS
from broker.errors import ServiceSchemaError
from broker.middlewares.base import Target, Wrap
from broker.middlewares.cacher import MISS, MemoryCacher
from broker.middlewares.retry_and_fallback import timeout
from broker.protocol.javascript import MISSING, dig, epoch_ms, text

Seconds = Annotated[float, Meta(ge=0)]


class LockSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How calls of one key wait for the first of them. A lock has no `ttl`, which JS takes for Redis alone."""

    enabled: bool = True
    stale_time: Seconds = 0
    """A result that is kept for less than this many seconds more is renewed in the background, and the caller gets the
    old one."""


class CacheSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an action says about its cache: `@action(cache={"keys": ["id", "#user.id"], "ttl": 30})`."""

    enabled: Any = True
    """False, or a function of the context that decides."""
    keys: list[str] | None = None
    """Paths into the params, `#path` into the meta, `@path` into the headers; all params by default."""
    ttl: Seconds | None = None
    """Seconds; the cacher's own by default."""
    keygen: Any = None
    """A function of the context that gives the key."""
    lock: bool | LockSettings = False
    """Whether calls of one key wait for the first of them, instead of running the action too."""


def caching(cacher: MemoryCacher | None, start: Callable[[Next, Context], None]) -> Wrap:
    """A hit bypasses the bulkhead, the validation and the hooks. `ctx.meta["$cache"] = False` bypasses the cache.
    `start` runs what no caller waits for in a task of its own."""

    def wrap(call_next: Next, target: Target) -> Next:
        settings = cache_settings(target.settings.get("cache"), target.name)
        if cacher is None or settings is None:
            return call_next
        lock = LockSettings(enabled=settings.lock) if isinstance(settings.lock, bool) else settings.lock
        in_time = timeout(call_next)
        refreshing: set[str] = set()

        async def cached(ctx: Context) -> Any:
            if ctx.meta.get("$cache") is False or ctx.stream is not None:
                return await call_next(ctx)
            if callable(settings.enabled) and not await settle(settings.enabled(ctx)):
                return await call_next(ctx)
            key = await _key(cacher, target.name, settings, ctx)
            found = cacher.get(key)
            if found is not MISS:
                left = cacher.left(key) if lock.enabled else None
                if left is not None and left < lock.stale_time and key not in refreshing:
                    refreshing.add(key)
                    start(lambda again: refresh(key, again), _apart(ctx))
                return found
            async with cacher.lock(key) if lock.enabled else contextlib.nullcontext():
                found = cacher.get(key) if lock.enabled else MISS
                return keep(key, await call_next(ctx)) if found is MISS else found

        def keep(key: str, result: Any) -> Any:
            if not hasattr(result, "__aiter__"):  # a stream can be read once only
                cacher.set(key, result, settings.ttl)
            return result

        async def refresh(key: str, ctx: Context) -> None:
            """It may take as long as the call that came upon the old result."""
            try:
                async with cacher.lock(key):
                    keep(key, await in_time(ctx))
            except Exception:
                cacher.delete(key)  # the next call runs the action, and its caller gets the error
            finally:
                refreshing.discard(key)

        return cached

    return wrap


def _apart(ctx: Context) -> Context:
    """The same call, with meta that is not sent."""
    ctx = copy.copy(ctx)
    ctx.meta, ctx.locals, ctx.response_headers = dict(ctx.meta), dict(ctx.locals), {}
    return ctx


def cache_settings(cache: Any, action: str) -> CacheSettings | None:
    """None when the action is not to be cached. Raises ServiceSchemaError for settings that do not fit."""
    if not cache:
        return None
    try:
        settings = msgspec.convert(dict(cache) if isinstance(cache, Mapping) else {}, CacheSettings)
    except msgspec.ValidationError as error:
        raise ServiceSchemaError(f"The cache settings of action '{action}' do not fit: {error}.") from None
    return None if settings.enabled is False else settings


async def _key(cacher: MemoryCacher, action: str, settings: CacheSettings, ctx: Context) -> str:
    if keygen := settings.keygen or cacher.keygen:
        return str(await settle(keygen(ctx)))
    return cache_key(action, ctx, settings.keys, cacher.max_params_length)


def cache_key(action: str, ctx: Context, keys: Sequence[str] | None = None, limit: int | None = None) -> str:
    """`posts.find:…`: what `keys` name, else all params. No keys at all: the action's name alone."""
    if keys is None:
        return f"{action}:{shortened(flatten(ctx.params), limit)}"
    if not keys:
        return action
    values = [_named(key, ctx) for key in keys]
    # One long value among several must not hide the others.
    limits = [limit if len(keys) > 1 and isinstance(value, Mapping | list | tuple) else None for value in values]
    parts = [shortened(flatten(value), own) for value, own in zip(values, limits, strict=True)]
    return f"{action}:{shortened('|'.join(parts), limit)}"


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


def _named(key: str, ctx: Context) -> Any:
    if key.startswith(("#", "@")):
        return dig(ctx.meta if key[0] == "#" else ctx.headers, key[1:])
    return MISSING if ctx.params is None else dig(ctx.params, key)
