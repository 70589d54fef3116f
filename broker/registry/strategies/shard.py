"""The same key to the same node: consistent hashing (moleculer protocol §9.2).

JS nodes compute the same ring, so callers in both languages send a key to the same node.
"""

import bisect
import hashlib
import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from broker.protocol.javascript import MISSING, dig, text

E = TypeVar("E")

ShardKey = str | Callable[[Any], Any]
"""A path into the params, `#path` into the meta, or a function of the context."""

RING_SIZE = 2**32


class Ring:
    """Hash values, and which node has those up to each."""

    def __init__(self, node_ids: Sequence[str], vnodes: int, size: int | None) -> None:
        self.node_ids = tuple(node_ids)
        names = sorted(node_ids, key=lambda name: name.encode("utf-16-be"))  # as JS sorts: by code unit
        total = len(names) * vnodes
        whole = size or RING_SIZE
        self.keys = [int(whole / total * number) for number in range(1, total + 1)]
        self.keys[-1] = whole
        self._names = names
        self._size = size

    def hash_of(self, key: str) -> int:
        value = int(hashlib.md5(key.encode(), usedforsecurity=False).hexdigest()[:8], 16)
        return value % self._size if self._size else value

    def node_of(self, key: str) -> str:
        index = bisect.bisect_left(self.keys, self.hash_of(key))
        return self._names[index % len(self._names)]


class Shard:
    """A call without a key goes to any node. The ring is that of the nodes that are usable: while a breaker keeps one
    out, its keys go to others."""

    def __init__(self, *, shard_key: ShardKey | None, vnodes: int, ring_size: int | None) -> None:
        self._shard_key = shard_key
        self._vnodes = vnodes
        self._ring_size = ring_size
        self._ring: Ring | None = None

    def choose(self, endpoints: Sequence[E], ctx: Any) -> E:
        key = self._key(ctx)
        if key is None or key is MISSING:
            return random.choice(endpoints)
        node_ids = tuple(endpoint.node_id for endpoint in endpoints)  # type: ignore[attr-defined]  # both kinds have one
        if self._ring is None or self._ring.node_ids != node_ids:
            self._ring = Ring(node_ids, self._vnodes, self._ring_size)
        return endpoints[node_ids.index(self._ring.node_of(text(key)))]

    def _key(self, ctx: Any) -> Any:
        if not self._shard_key or ctx is None:
            return None
        if callable(self._shard_key):
            return self._shard_key(ctx)
        if self._shard_key.startswith("#"):
            return dig(ctx.meta, self._shard_key[1:])
        return dig(ctx.params, self._shard_key)
