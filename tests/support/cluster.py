"""The brokers of a cluster, in the process of the test, over the transport that the test runs with.

    alice, bob = await cluster.start(("alice", [Greeter()]), ("bob", []))
    await bob.call("greeter.hello", {"name": "Ada"})

The delays of a start are shortened: they are there for slow networks, and tests wait for conditions.
"""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
import pytest

from broker import Service, ServiceBroker
from broker.node.work import State
from broker.protocol.packets import Command
from broker.protocol.topics import Topics
from broker.transports import make_transport
from broker.transports.base import Observer, Transport
from tests.support.waiting import DEADLINE_S, eventually

__all__ = ["Cluster", "RawPeer", "open_cluster", "shorten_waits"]


def shorten_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes on one machine answer within milliseconds."""
    monkeypatch.setattr("broker.defaults.DISCOVERY_LISTEN_S", 0.0)
    monkeypatch.setattr("broker.defaults.DISCOVERY_SECOND_VERSION_S", 0.02)
    monkeypatch.setattr("broker.defaults.DISCOVERY_WAIT_S", 0.04)
    monkeypatch.setattr("broker.defaults.ANNOUNCE_DELAY_S", 0.01)
    monkeypatch.setattr("broker.defaults.STOP_DELAY_S", 0.05)
    monkeypatch.setattr("broker.defaults.STOP_READ_S", 0.1)
    monkeypatch.setattr("broker.defaults.TICK_S", 0.02)
    monkeypatch.setattr("broker.defaults.ID_PROBE_S", 0.3)


class RawPeer:
    """A peer driven by the test: it publishes the given packets, and keeps what it receives."""

    def __init__(self, transport: Transport, topics: Topics, node_id: str) -> None:
        self.transport = transport
        self.topics = topics
        self.node_id = node_id
        self.received: list[tuple[str, dict[str, Any]]] = []

    async def listen(self, *commands: Command) -> None:
        """Subscribe to these commands, sent to this node or broadcast."""
        for command in commands:
            for subject in (self.topics.to_node(command, self.node_id), self.topics.broadcast(command)):
                await self.transport.subscribe(subject, self._receive(command))
        await self.transport.flush()

    async def publish(self, subject: str, data: bytes | dict[str, Any]) -> None:
        await self.transport.publish(subject, data if isinstance(data, bytes) else msgspec.json.encode(data))
        await self.transport.flush()

    async def ask(self, node_id: str, action: str, **fields: Any) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        packet = {"ver": "5", "sender": self.node_id, "id": f"{self.node_id}-{len(self.received)}", "action": action}
        packet |= fields
        await self.publish(self.topics.to_node("REQ", node_id), packet)
        return await self.answer(packet["id"])

    async def answer(self, request_id: str) -> dict[str, Any]:
        return await self.wait_for("RES", lambda packet: packet.get("id") == request_id)

    async def wait_for(self, command: Command, wanted: Any = lambda packet: True) -> dict[str, Any]:
        """Wait for the first packet of this command that `wanted` accepts."""

        def found() -> dict[str, Any] | None:
            return next((p for name, p in self.received if name == command and wanted(p)), None)

        packet = await eventually(found, f"a {command} at {self.node_id}; received {self.received[-3:]}")
        assert packet is not None
        return packet

    async def introduce(self, *services: dict[str, Any], **fields: Any) -> None:
        """Announce itself with services."""
        packet = {
            "ver": "5",
            "sender": self.node_id,
            "services": list(services),
            "instanceID": f"instance of {self.node_id}",
            "seq": 2,
        }
        await self.publish(self.topics.broadcast("INFO"), packet | fields)

    def _receive(self, command: Command) -> Any:
        async def on_message(data: bytes, _reply: str) -> None:
            try:
                packet = json.loads(data)  # also reads lone surrogates
            except ValueError:
                packet = None
            self.received.append((command, packet if isinstance(packet, dict) else {"not a packet": data}))

        return on_message


class Cluster:
    """Starts brokers, and stops them at the end of the test."""

    def __init__(self, transporter: str, namespace: str) -> None:
        self.transporter = transporter
        self.namespace = namespace
        self.topics = Topics(namespace)
        self.brokers: list[ServiceBroker] = []
        self._transports: list[Transport] = []

    def make(self, node_id: str, services: Sequence[Service] = (), **options: Any) -> ServiceBroker:
        """A broker that has not started; it is stopped with the others."""
        options = {"transporter": self.transporter, "namespace": self.namespace, **options}
        broker = ServiceBroker(node_id, services=services, **options)
        self.brokers.append(broker)
        return broker

    async def start_one(self, node_id: str, services: Sequence[Service] = (), **options: Any) -> ServiceBroker:
        """Start a broker, and wait until it and the others know each other."""
        broker = self.make(node_id, services, **options)
        await broker.start()
        await self.wait_until_connected()
        return broker

    async def start(self, *nodes: tuple[str, Sequence[Service]], **options: Any) -> list[ServiceBroker]:
        """Start brokers at the same time, and wait until they know each other."""
        brokers = [self.make(node_id, services, **options) for node_id, services in nodes]
        async with anyio.create_task_group() as tasks:
            for broker in brokers:
                tasks.start_soon(broker.start)
        await self.wait_until_connected()
        return brokers

    async def wait_until_connected(self) -> None:
        """Wait until all running brokers know all services of each other."""

        def known() -> bool:
            mine = [broker for broker in self.brokers if broker.options.namespace == self.namespace]
            live = [broker for broker in mine if broker._life.state is State.STARTED]
            return all(_knows(one, other) for one in live for other in live if one is not other)

        await eventually(known, "the brokers to know each other")

    async def raw_peer(self, node_id: str, *commands: Command) -> RawPeer:
        """Connect a raw peer that subscribes to these commands."""
        transport = make_transport(self.transporter)
        assert transport is not None
        self._transports.append(transport)
        await transport.connect(Observer(), node_id, self.topics.inboxes)
        peer = RawPeer(transport, self.topics, node_id)
        await peer.listen(*commands)
        return peer

    async def kill(self, broker: ServiceBroker) -> None:
        """Close a node's connection without DISCONNECT, as a crash does. The rest of the node is stopped at the end."""
        transport = broker._node.transport
        assert transport is not None
        await transport.close()
        await self._until_disconnected(broker.node_id)

    async def cut_off(self, peer: RawPeer) -> None:
        """Close the connection of a raw peer that is subscribed to RES."""
        await peer.transport.close()
        await self._until_disconnected(peer.node_id)

    async def _until_disconnected(self, node_id: str) -> None:
        """NATS notices a closed connection a moment later; messages sent in between are lost."""
        peer = await self.raw_peer("observer")
        with anyio.fail_after(DEADLINE_S):
            while await peer.transport.has_subscribers(self.topics.to_node("RES", node_id), b""):
                await anyio.lowlevel.checkpoint()

    async def close(self) -> None:
        for broker in reversed(self.brokers):
            await broker.stop()
        for transport in self._transports:
            await transport.close()


def _knows(one: ServiceBroker, other: ServiceBroker) -> bool:
    """A node without services announces nothing before its first heartbeat (protocol §3.3), so it need not be known."""
    wanted = {service["fullName"] for service in other.registry.local.services}
    node = one.registry.nodes.get(other.node_id)
    if node is None or not node.available:
        return not wanted
    return {service["fullName"] for service in node.services} == wanted


@asynccontextmanager
async def open_cluster(transporter: str, namespace: str) -> AsyncIterator[Cluster]:
    """A cluster for the block. When it ends, its brokers have no pending requests."""
    cluster = Cluster(transporter, namespace)
    try:
        yield cluster
    finally:
        with anyio.CancelScope(shield=True):
            await cluster.close()
        for broker in cluster.brokers:
            assert broker._node.transit.requests.pending == {}
            assert not broker._node.transit.in_work
