"""Pings: one that a user asks for, that of a node that stops, and those behind the Latency strategy (moleculer protocol
§9.2)."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeGuard

import anyio

from broker.conversation.effects import Effect
from broker.conversation.transit import Transit
from broker.ids import new_id
from broker.node.effects import epoch_ms
from broker.protocol.packets import Pong
from broker.registry.nodes import KnownNode

LARGEST_TIME_MS = 8.64e15
"""The largest time that JavaScript knows."""


class Pinging:
    """Pings nodes. Each answer is the internal event `$node.pong` as well."""

    def __init__(
        self,
        transit: Transit,
        perform: Callable[[Iterable[Effect]], Awaitable[None]],
        notify: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self._presence = transit.presence
        self._registry = transit.registry
        self._perform = perform
        self._notify = notify
        self._waiting: dict[str, tuple[set[str], asyncio.Future[dict[str, Any] | None]]] = {}
        """By the id of a ping: the nodes that have not answered it."""

    async def ping(self, node_id: str, timeout_s: float) -> dict[str, Any] | None:
        return await self._ask({node_id}, timeout_s)

    async def reach_all(self, timeout_s: float) -> None:
        """Return when every live peer has read what was sent to it until now, as its answer to a ping shows, or after
        `timeout_s` seconds."""
        peers = {node.id for node in self._live_peers()} - self._registry.unresponsive
        if peers:
            await self._ask(peers, timeout_s)

    async def _ask(self, peers: set[str], timeout_s: float) -> dict[str, Any] | None:
        ping_id = new_id()
        waiter: asyncio.Future[dict[str, Any] | None] = asyncio.get_running_loop().create_future()
        self._waiting[ping_id] = peers, waiter
        try:
            for node_id in list(peers):  # each in its own version: JS nodes log an error for one to all in the other
                await self._perform(self._presence.ping(node_id, ping_id, epoch_ms()))
            with anyio.move_on_after(timeout_s):
                return await waiter
            return None
        finally:
            del self._waiting[ping_id]

    def arrived(self, pong: Pong) -> None:
        """A ping was answered; old nodes do not repeat its id."""
        now, node = epoch_ms(), self._registry.nodes.get(pong.sender)
        elapsed = now - pong.time if _is_finite(pong.time) else 0
        skew = round(now - pong.arrived - elapsed / 2) if _is_finite(pong.arrived) else 0
        result = {"nodeID": pong.sender, "elapsedTime": elapsed, "timeDiff": skew}
        ping_id = pong.id if isinstance(pong.id, str) else None
        if node is not None and node.hostname is not None:
            self._registry.latencies.record(node.hostname, elapsed / 1000)
        self._answered(pong.sender, result, ping_id)
        self._notify("$node.pong", {**result, "id": ping_id})

    def on_disconnected(self, payload: dict[str, Any]) -> None:
        """When it was the last node of its host, what is known of the host is of no use any more."""
        self._answered(payload["node"]["id"], None)
        host = payload["node"]["hostname"]
        known = self._registry.latencies.average(host) is not None
        if known and all(node.hostname != host for node in self._live_peers()):
            self._registry.latencies.forget(host)

    def _answered(self, node_id: str, result: dict[str, Any] | None, answered: str | None = None) -> None:
        for ping_id, (peers, waiter) in self._waiting.items():
            if answered in (None, ping_id):
                peers.discard(node_id)
                if not peers and not waiter.done():
                    waiter.set_result(result)

    async def measure(self) -> None:
        """As soon as a strategy asks for latencies, ping all nodes, then one of each host again and again."""
        latencies, used = self._registry.latencies, anyio.Event()
        latencies.on_use = used.set
        if not latencies.used:
            await used.wait()
        await self._perform(self._presence.ping(None, new_id(), epoch_ms()))
        while True:
            await anyio.sleep(latencies.ping_interval_s)
            hosts: dict[str | None, list[str]] = {}
            for node in self._live_peers():
                hosts.setdefault(node.hostname, []).append(node.id)
            for node_ids in hosts.values():
                await self._perform(self._presence.ping(random.choice(node_ids), new_id(), epoch_ms()))

    def _live_peers(self) -> list[KnownNode]:
        return [node for node in self._registry.nodes.values() if node.available and not node.local]


def _is_finite(value: Any) -> TypeGuard[int | float]:
    """Whether a peer sent a number that can be reckoned with: JSON has some that are beyond any float."""
    return isinstance(value, int | float) and -LARGEST_TIME_MS < value < LARGEST_TIME_MS
