"""Results kept in memory, each until its time is over (moleculer protocol §12.7)."""

import copy
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import anyio

from broker.defaults import CACHE_SWEEP_S
from broker.errors import BrokerOptionsError
from broker.registry.patterns import matches

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

    @asynccontextmanager
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
