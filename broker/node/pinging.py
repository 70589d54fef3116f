"""Pings: one that somebody asks for, and those behind the Latency strategy (moleculer protocol §9.2)."""

import asyncio
import random
from collections.abc import Callable, Iterable
from typing import Any

import anyio

from broker.ids import new_id
from broker.node.effects import epoch_ms
from broker.node.node import Node
from broker.registry.nodes import KnownNode
from broker.registry.registry import Registry


class Pinging:
    """Pings nodes. The answers come by `$node.pong` as well."""

    def __init__(self, node: Node, registry: Registry) -> None:
        self._node = node
        self._registry = registry
        self._unread: dict[str, set[str]] = {}
        """By the id of a ping to all: the peers that have not answered it."""
        self._answered = anyio.Event()

    async def ping(self, node_id: str, timeout_s: float) -> dict[str, Any] | None:
        """See `ServiceBroker.ping`."""
        ping_id = new_id()
        waiter: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        pongs = self._node.performing.pongs
        pongs[ping_id] = (node_id, waiter)
        try:
            await self._node.perform(self._node.transit.presence.ping(node_id, ping_id, epoch_ms()))
            with anyio.move_on_after(timeout_s):
                return await waiter
            return None
        finally:
            pongs.pop(ping_id, None)

    async def reach_all(self, timeout_s: float) -> None:
        """Return when every live peer has read what was sent to it until now, as its answer to a ping shows, or after
        `timeout_s` seconds."""
        peers = {node.id for node in live_peers(self._registry.nodes.values())} - self._registry.unresponsive
        if not peers:
            return
        ping_id = new_id()
        self._unread[ping_id] = peers
        await self._node.perform(self._node.transit.presence.ping(None, ping_id, epoch_ms()))
        with anyio.move_on_after(timeout_s):
            while self._unread[ping_id]:
                await self._answered.wait()
        del self._unread[ping_id]

    def start(self) -> None:
        """Ping all nodes as soon as some strategy asks for latencies, then one of each host, for ever."""
        if self._node.transport is None:
            return

        def run() -> None:
            self._node.background.start_soon(self.run)

        if self._registry.latencies.used:
            run()
        else:
            self._registry.latencies.on_use = run

    async def run(self) -> None:
        await self._node.perform(self._node.transit.presence.ping(None, new_id(), epoch_ms()))
        while True:
            await anyio.sleep(self._registry.latencies.ping_interval_s)
            for node_id in one_of_each_host(self._registry.nodes.values()):
                await self._node.perform(self._node.transit.presence.ping(node_id, new_id(), epoch_ms()))

    def on_pong(self, payload: dict[str, Any]) -> None:
        self._has_read(payload["nodeID"], payload["id"])
        node = self._registry.nodes.get(payload["nodeID"])
        if node is not None and node.hostname is not None:
            self._registry.latencies.record(node.hostname, payload["elapsedTime"] / 1000)

    def on_disconnected(self, payload: dict[str, Any]) -> None:
        """When it was the last node of its host, what is known of the host is of no use any more."""
        for ping_id in self._unread:
            self._has_read(payload["node"]["id"], ping_id)
        host = payload["node"]["hostname"]
        known = self._registry.latencies.average(host) is not None
        if known and all(node.hostname != host for node in live_peers(self._registry.nodes.values())):
            self._registry.latencies.forget(host)

    def _has_read(self, node_id: str, ping_id: str | None) -> None:
        if ping_id in self._unread:
            self._unread[ping_id].discard(node_id)
            self._answered.set()
            self._answered = anyio.Event()


def live_peers(nodes: Iterable[KnownNode]) -> Iterable[KnownNode]:
    return (node for node in nodes if node.available and not node.local)


def one_of_each_host(nodes: Iterable[KnownNode], choose: Callable[[list[str]], str] = random.choice) -> list[str]:
    """A node of each host, not always the same one."""
    hosts: dict[str | None, list[str]] = {}
    for node in live_peers(nodes):
        hosts.setdefault(node.hostname, []).append(node.id)
    return [choose(ids) for ids in hosts.values()]
