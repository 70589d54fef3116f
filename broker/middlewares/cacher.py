"""Keep results of actions in memory, and answer with them instead of running the action (moleculer protocol §12.7).

Keys are those of Moleculer 0.15. 0.14 does not quote strings, so its nodes find other keys in a cache that they share
with these.
"""

import base64
import contextlib
import copy
import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from weakref import WeakValueDictionary

import anyio
import msgspec
from msgspec import Struct

from broker.cancellation import settle
from broker.context import Context, Next
from broker.defaults import CACHE_KEY_DIGEST_CHARACTERS, CACHE_SWEEP_S
from broker.errors import BrokerOptionsError, ServiceSchemaError
from broker.middlewares.base import Target, Wrap
from broker.middlewares.retry_and_fallback import timeout
from broker.protocol.javascript import MISSING, dig, epoch_ms, text
from broker.registry.patterns import matches
from broker.services.policies import Seconds

MISS: Any = type("Miss", (), {"__repr__": lambda self: "<miss>"})()
"""Nothing is kept under this key. None may well be."""


@dataclass(kw_only=True, eq=False)
class MemoryCacher:
    """`ttl` in seconds for what has none of its own; None or 0 keeps it until it is removed. Reading does not make it
    last longer. With `max`, at most that many entries are kept: the least recently used one makes room. Without, as in
    JS, only `ttl` bounds the memory: set one of the two where callers choose parameters freely.

    `keygen`, a function of the context, makes the keys of all actions. A key with more than `max_params_length`
    characters is shortened. With `clone`, each caller gets a copy; without, callers on this node must not change what
    they get. `clock` gives a monotonic time in seconds. Raises BrokerOptionsError.
    """

    ttl: float | None = None
    max: int | None = None
    keygen: Callable[..., Any] | None = None
    max_params_length: int | None = None
    clone: bool = False
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        if self.max is not None and (not isinstance(self.max, int) or self.max < 1):
            raise BrokerOptionsError(f"The max of the memory cacher is a number of entries, not {self.max!r}.")
        if self.ttl is not None and (not isinstance(self.ttl, int | float) or self.ttl < 0):
            raise BrokerOptionsError(f"The ttl of the memory cacher is a number of seconds, not {self.ttl!r}.")
        self._entries: OrderedDict[str, tuple[Any, float]] = OrderedDict()  # with its end, the last used one last
        self._locks: WeakValueDictionary[str, anyio.Lock] = WeakValueDictionary()  # each as long as it is used
        self._next_sweep = self.clock() + CACHE_SWEEP_S

    def get(self, key: str) -> Any:
        """What is kept, or MISS."""
        value, end = self._entries.get(key, (MISS, math.inf))
        if value is MISS or end <= self.clock():
            self._entries.pop(key, None)
            return MISS
        self._entries.move_to_end(key)
        return copy.deepcopy(value) if self.clone else value

    def set(self, key: str, value: Any, ttl: float | None = None) -> None:
        """Keep a value for `ttl` seconds, by default the cacher's own."""
        now = self.clock()
        if now >= self._next_sweep:
            self._next_sweep = now + CACHE_SWEEP_S
            self.delete(*[key for key, (_, end) in self._entries.items() if end <= now])
        seconds = self.ttl if ttl is None else ttl
        self._entries[key] = (copy.deepcopy(value) if self.clone else value, now + seconds if seconds else math.inf)
        self._entries.move_to_end(key)
        if self.max is not None and len(self._entries) > self.max:
            self._entries.popitem(last=False)

    def left(self, key: str) -> float | None:
        """For how many seconds this is still kept; None for what has no end, or is not there."""
        _, end = self._entries.get(key, (None, math.inf))
        return None if end == math.inf else max(0.0, end - self.clock())

    def delete(self, *keys: str) -> None:
        """Forget these."""
        for key in keys:
            self._entries.pop(key, None)

    def clean(self, *patterns: str) -> None:
        """Forget what matches one of the patterns, as event names match (§7.3); by default everything."""
        self.delete(*[key for key in self._entries if any(matches(key, one) for one in patterns or ("**",))])

    def keys(self) -> list[str]:
        """The keys of what is kept, the least recently used first."""
        return list(self._entries)

    @contextlib.asynccontextmanager
    async def lock(self, key: str) -> AsyncIterator[None]:
        """One at a time for each key, in the order in which they came."""
        lock = self._locks.setdefault(key, anyio.Lock())
        async with lock:
            yield


def make_cacher(option: Any) -> MemoryCacher | None:
    """From the broker's option: True, `{"ttl": …}`, a cacher, or nothing. Raises BrokerOptionsError."""
    if not option:
        return None
    if isinstance(option, MemoryCacher):
        return option
    if option is True or (isinstance(option, str) and option.lower() == "memory"):
        return MemoryCacher()
    if isinstance(option, Mapping):
        try:
            return MemoryCacher(**option)
        except TypeError as error:
            raise BrokerOptionsError(f"The memory cacher has no such option: {error}.") from None
    raise BrokerOptionsError(f"cacher must be True, options of the memory cacher, or a MemoryCacher, not {option!r}.")


class LockSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How calls of one key wait for the first of them. A lock has no `ttl`, which JS takes for Redis alone."""

    enabled: bool = True
    stale_time: Seconds = 0
    """What is kept for less than this many seconds more is renewed in the background, and the caller gets it still."""


class CacheSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an action says about its cache: `@action(cache={"keys": ["id", "#user.id"], "ttl": 30})`."""

    enabled: Any = True  # False, or a function of the context that decides
    keys: list[str] | None = None
    """Paths into the params, `#path` into the meta, `@path` into the headers; all params by default."""
    ttl: Seconds | None = None  # the cacher's own by default
    keygen: Any = None  # a function of the context that gives the key
    lock: bool | LockSettings = False  # whether calls of one key wait for the first, instead of running the action too


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
