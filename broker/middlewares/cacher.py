"""Results kept in memory, each until its time is over (moleculer protocol §12.7)."""

import copy
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakValueDictionary

import anyio

from broker.defaults import CACHE_SWEEP_S
from broker.errors import BrokerOptionsError
from broker.registry.patterns import matches

MISS: Any = type("Miss", (), {"__repr__": lambda self: "<miss>"})()
"""Nothing is kept under this key. None may well be."""


class MemoryCacher:
    """`ttl` in seconds for what has none of its own; None or 0 keeps it until it is removed. Reading does not make it
    last longer. With `max`, at most that many entries are kept: the least recently used one makes room. Without, as in
    JS, only `ttl` bounds the memory: set one of the two where callers choose parameters freely.

    `keygen`, a function of the context, makes the keys of all actions. A key with more than `max_params_length`
    characters is shortened. With `clone`, each caller gets a copy; without, callers on this node must not change what
    they get. `clock` gives a monotonic time in seconds. Raises BrokerOptionsError.
    """

    def __init__(
        self,
        *,
        ttl: float | None = None,
        max: int | None = None,
        keygen: Callable[..., Any] | None = None,
        max_params_length: int | None = None,
        clone: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max is not None and (not isinstance(max, int) or max < 1):
            raise BrokerOptionsError(f"The max of the memory cacher is a number of entries from 1 on, not {max!r}.")
        if ttl is not None and (not isinstance(ttl, int | float) or ttl < 0):
            raise BrokerOptionsError(f"The ttl of the memory cacher is a number of seconds, not {ttl!r}.")
        self.keygen = keygen
        self.max_params_length = max_params_length
        self._ttl = ttl
        self._max = max
        self._clone = clone
        self._clock = clock
        self._entries: OrderedDict[str, tuple[Any, float]] = OrderedDict()  # the last used one last
        self._locks: WeakValueDictionary[str, anyio.Lock] = WeakValueDictionary()  # each as long as it is used
        self._swept = clock()

    def get(self, key: str) -> Any:
        """What is kept, or MISS."""
        value, expires = self._entries.get(key, (MISS, math.inf))
        if value is MISS or expires <= self._clock():
            self._entries.pop(key, None)
            return MISS
        self._entries.move_to_end(key)
        return copy.deepcopy(value) if self._clone else value

    def set(self, key: str, value: Any, ttl: float | None = None) -> None:
        """Keep a value for `ttl` seconds, by default the cacher's own."""
        now = self._clock()
        self._sweep(now)
        seconds = self._ttl if ttl is None else ttl
        self._entries[key] = (copy.deepcopy(value) if self._clone else value, now + seconds if seconds else math.inf)
        self._entries.move_to_end(key)
        if self._max is not None and len(self._entries) > self._max:
            self._entries.popitem(last=False)

    def left(self, key: str) -> float | None:
        """For how many seconds this is still kept; None for what has no end, or is not there."""
        _, expires = self._entries.get(key, (None, math.inf))
        return None if expires == math.inf else max(0.0, expires - self._clock())

    def delete(self, *keys: str) -> None:
        """Forget these."""
        for key in keys:
            self._entries.pop(key, None)

    def clean(self, *patterns: str) -> None:
        """Forget what matches one of the patterns, as event names match (§7.3); by default everything."""
        self.delete(*[key for key in self._entries if any(matches(key, one) for one in patterns or ("**",))])

    def keys(self) -> list[str]:
        """Those of the entries, the least recently used first."""
        return list(self._entries)

    @asynccontextmanager
    async def lock(self, key: str) -> AsyncIterator[None]:
        """One at a time for each key, in the order in which they came."""
        lock = self._locks.setdefault(key, anyio.Lock())
        async with lock:
            yield

    def _sweep(self, now: float) -> None:
        if now - self._swept < CACHE_SWEEP_S:
            return
        self._swept = now
        for key in [key for key, (_, expires) in self._entries.items() if expires <= now]:
            del self._entries[key]


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
