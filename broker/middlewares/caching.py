"""Answer from the cache instead of running an action (moleculer protocol §12.7)."""

import contextlib
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from broker.cache_keys import cache_key
from broker.cacher import MISS, MemoryCacher
from broker.context import Context
from broker.errors import ServiceSchemaError
from broker.middleware import Next, Target, Wrap, settle


class CacheSettings(Struct, frozen=True, kw_only=True):
    """What an action says about its cache: `@action(cache={"keys": ["id", "#user.id"], "ttl": 30})`."""

    enabled: Any = True
    """False, or a function of the context that tells."""
    keys: list[str] | None = None
    """Paths into the params, `#path` into the meta, `@path` into the headers; all params by default."""
    ttl: Annotated[float, Meta(ge=0)] | None = None
    """Seconds; the cacher's own by default."""
    keygen: Any = None
    """A function of the context that gives the key."""
    lock: Any = False
    """Whether calls of one key wait for the first of them, instead of running the action too."""


def caching(cacher: MemoryCacher | None) -> Wrap:
    """A hit passes by the bulkhead, the validation and the hooks. `ctx.meta["$cache"] = False` passes by the cache."""

    def wrap(call_next: Next, target: Target) -> Next:
        settings = cache_settings(target.settings.get("cache"), target.name)
        if cacher is None or settings is None:
            return call_next
        lock = settings.lock.get("enabled", True) if isinstance(settings.lock, Mapping) else bool(settings.lock)

        async def cached(ctx: Context) -> Any:
            if ctx.meta.get("$cache") is False or ctx.stream is not None:
                return await call_next(ctx)
            if callable(settings.enabled) and not await settle(settings.enabled(ctx)):
                return await call_next(ctx)
            key = await _key(cacher, target.name, settings, ctx)
            found = cacher.get(key)
            if found is not MISS:
                return found
            async with cacher.lock(key) if lock else contextlib.nullcontext():
                found = cacher.get(key) if lock else MISS
                if found is not MISS:
                    return found
                result = await call_next(ctx)
                if not hasattr(result, "__aiter__"):  # a stream can be read once only
                    cacher.set(key, result, settings.ttl)
                return result

        return cached

    return wrap


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
