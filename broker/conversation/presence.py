"""What a node says of itself to everybody: who it is, that it lives, that it goes (moleculer protocol §2.4, §3, §4).

Broadcasts go out in a protocol version only while a live peer speaks it, since a JS node logs an error for every
broadcast in the other version.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from broker.conversation.effects import Effect, Publish
from broker.conversation.peer_exchange import PeerExchange
from broker.protocol.packets import PROTOCOLS, Command, Disconnect, Discover, Heartbeat, Info, Packet, Ping, Protocol
from broker.protocol.topics import Topics
from broker.registry.registry import KnownNode, Registry


class Identity(NamedTuple):
    """What a node says of itself in INFO (§3.1)."""

    node_id: str
    instance_id: str
    hostname: str
    ip_list: list[str]
    client: dict[str, Any]
    metadata: dict[str, Any]


class Announcing:
    """Makes the packets. `pinned` is the one version to speak; None for both, to each peer in its own. A `visitor` says
    nothing of itself, unless it offers something, and then to each node alone."""

    def __init__(
        self,
        identity: Identity,
        topics: Topics,
        registry: Registry,
        peers: PeerExchange,
        pinned: Protocol | None,
        *,
        visitor: bool = False,
    ) -> None:
        self._identity = identity
        self._topics = topics
        self._registry = registry
        self._peers = peers
        self._visitor = visitor
        self._introduced = not visitor
        self._asked: set[Protocol] = set()
        registry.local.introduce(identity.instance_id, identity.hostname, identity.ip_list, identity.client)
        registry.local.metadata, registry.local.sequence = identity.metadata, 1
        self._pinned = pinned
        self._active: set[Protocol] = {pinned or PROTOCOLS[0]}
        self._sequence = 1
        self._services_changed = False

    @property
    def hidden(self) -> bool:
        """Whether no other node shall know of this one."""
        return not self._introduced and not self._registry.local.services

    def discover(self) -> list[Effect]:
        """Ask all nodes who they are (§4.1), a visitor those that it knows."""
        if self._visitor:
            return [self._discover_one(node) for node in self._live_peers()]
        if not self._pinned:
            self._active = self._registry.versions() | set(self._peers.named.values()) or self._active
        self._asked |= self._active
        return [self._discover_in(ver) for ver in sorted(self._active, reverse=True)]

    def discover_everywhere(self) -> list[Effect]:
        """Ask all nodes who they are, whatever version they speak: each JS node logs one error at most."""
        self._peers.completed()
        return [self._discover_in(ver) for ver in ([self._pinned] if self._pinned else PROTOCOLS)]

    def discover_others(self) -> list[Effect]:
        """Ask in the other version too when that leaves no line in a JS log: no such node is known, nor one that starts
        and may be one (§2.4). Nodes of another version than those that are known are found by their heartbeats."""
        if self._pinned or self._peers.complete or self._peers.named:
            return []
        if any(not node.bilingual for node in self._live_peers()):
            return []
        self._peers.completed()
        return [self._discover_in(ver) for ver in PROTOCOLS if ver not in self._asked]

    def service_changed(self) -> None:
        """Note that the next INFO is a new one (§3.4)."""
        self._services_changed = True

    def announce(self) -> list[Effect]:
        """Tell the other nodes what this one offers."""
        if not self._visitor:
            return self._broadcast("INFO", self.info)
        if self.hidden:
            return []
        return [self._info_to(node.id) for node in self._live_peers()]

    def heartbeat(self, cpu: float | None) -> list[Effect]:
        """Tell the other nodes that this one lives."""
        self._registry.local.heard_cpu(cpu)
        if self.hidden:
            return []
        return self._broadcast("HEARTBEAT", lambda ver: Heartbeat(ver=ver, sender=self._identity.node_id, cpu=cpu))

    def leave(self) -> list[Effect]:
        """Announce that nothing is offered any more; requests that arrive now are still served (§4.2)."""
        self._registry.hide_services()
        self._services_changed = True
        return self.announce()

    def disconnect(self) -> list[Effect]:
        """Say good-bye."""
        if self.hidden:
            return []
        return self._broadcast("DISCONNECT", lambda ver: Disconnect(ver=ver, sender=self._identity.node_id))

    def ping_all(self, ping_id: str, epoch_ms: int) -> list[Effect]:
        """Ask every node for a sign of life."""
        return self._broadcast(
            "PING", lambda ver: Ping(ver=ver, sender=self._identity.node_id, time=epoch_ms, id=ping_id)
        )

    def version_for(self, node_id: str) -> Protocol:
        """The protocol version to use towards a node."""
        node = self._registry.nodes.get(node_id)
        if node is not None and not node.local:
            return node.ver
        return self._peers.named.get(node_id) or self._pinned or PROTOCOLS[0]

    def info(self, ver: Protocol) -> Info:
        """What this node is and offers."""
        self._introduced = True
        if self._services_changed:
            self._services_changed = False
            self._sequence += 1
            self._registry.local.sequence = self._sequence
        return Info(
            ver=ver,
            sender=self._identity.node_id,
            services=self._registry.local.services,
            ip_list=list(self._identity.ip_list),
            hostname=self._identity.hostname,
            client=dict(self._identity.client),
            config={},
            instance_id=self._identity.instance_id,
            metadata=self._identity.metadata,
            sequence=self._sequence,
        )

    def met(self, node_id: str, *, new: bool, ready: bool) -> list[Effect]:
        """A node said what it is. The first one of its version: let it know this node, and where others of that version
        may be unknown, find them, and let them know it, too."""
        self._peers.met(node_id)
        versions = set() if self._pinned else self._registry.versions() - self._active
        self._active |= versions
        effects: list[Effect] = []
        if self._visitor or self._peers.complete:
            if ready and (new if self._visitor else versions) and not self.hidden:
                effects.append(self._info_to(node_id))
            return effects
        for ver in sorted(versions):
            effects.append(self._discover_in(ver))
            if ready:
                effects.append(Publish(self._topics.broadcast("INFO"), self.info(ver)))
        return effects

    def _live_peers(self) -> list[KnownNode]:
        return [node for node in self._registry.nodes.values() if node.available and not node.local]

    def _info_to(self, node_id: str) -> Publish:
        return Publish(self._topics.to_node("INFO", node_id), self.info(self.version_for(node_id)))

    def _discover_one(self, node: KnownNode) -> Publish:
        return Publish(self._topics.to_node("DISCOVER", node.id), Discover(ver=node.ver, sender=self._identity.node_id))

    def _discover_in(self, ver: Protocol) -> Publish:
        return Publish(self._topics.broadcast("DISCOVER"), Discover(ver=ver, sender=self._identity.node_id))

    def _broadcast(self, command: Command, packet: Callable[[Protocol], Packet]) -> list[Effect]:
        """Once per version in use (§2.4)."""
        if not self._pinned:
            self._active = self._registry.versions() or self._active
        return [Publish(self._topics.broadcast(command), packet(ver)) for ver in sorted(self._active, reverse=True)]
