"""Answer from the cache instead of running an action (moleculer protocol §12.7)."""

import contextlib
import copy
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from broker.context import Context, Next
from broker.errors import ServiceSchemaError
from broker.middlewares.base import Target, Wrap, settle
from broker.middlewares.cache_keys import cache_key
from broker.middlewares.cacher import MISS, MemoryCacher

Seconds = Annotated[float, Meta(ge=0)]


class LockSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How calls of one key wait for the first of them. There is no `ttl` of a lock, which JS takes for Redis alone: a
    lock in memory is free when the call that has it ends, however it does."""

    enabled: bool = True
    stale_time: Seconds = 0
    """A result that is kept for less than this many seconds more is renewed in the background, while the caller gets
    the old one. So no caller waits for an action that is called often."""


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


def caching(cacher: MemoryCacher | None, start: Callable[[Next, Context], None], timeout: Wrap) -> Wrap:
    """A hit bypasses the bulkhead, the validation and the hooks. `ctx.meta["$cache"] = False` bypasses the cache.
    `start` runs what no caller waits for in a task of its own, and `timeout` ends it when the call's time is over."""

    def wrap(call_next: Next, target: Target) -> Next:
        settings = cache_settings(target.settings.get("cache"), target.name)
        if cacher is None or settings is None:
            return call_next
        lock = LockSettings(enabled=settings.lock) if isinstance(settings.lock, bool) else settings.lock
        in_time = timeout(call_next, target)
        refreshing: set[str] = set()

        async def cached(ctx: Context) -> Any:
            if ctx.meta.get("$cache") is False or ctx.stream is not None:
                return await call_next(ctx)
            if callable(settings.enabled) and not await settle(settings.enabled(ctx)):
                return await call_next(ctx)
            key = await _key(cacher, target.name, settings, ctx)
            found = cacher.get(key)
            if found is not MISS:
                if lock.enabled and key not in refreshing and _is_stale(cacher.left(key), lock):
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


def _is_stale(left: float | None, lock: LockSettings) -> bool:
    return left is not None and left < lock.stale_time


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
    keygen = settings.keygen or cacher.keygen
    if keygen is not None:
        return str(await settle(keygen(ctx)))
    return cache_key(
        action,
        ctx.params,
        ctx.meta,
        ctx.headers,
        keys=settings.keys,
        max_params_length=cacher.max_params_length,
    )
