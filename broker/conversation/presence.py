"""What a node says of itself to everybody: who it is, that it lives, that it goes (moleculer protocol §2.4, §3, §4).

Broadcasts go out in a protocol version only while a live peer speaks it, since a JS node logs an error for every
broadcast in the other version.
"""

from collections.abc import Callable

from broker.conversation.effects import Effect, Publish
from broker.conversation.peer_exchange import PeerExchange
from broker.conversation.presence_packets import Identity, PresencePackets
from broker.protocol.packets import PROTOCOLS, Protocol
from broker.registry.nodes import KnownNode
from broker.registry.registry import Registry


class Presence:
    """Decides which packets go out. `pinned` is the one version to speak; None for both, to each peer in its own. A
    `visitor` says nothing of itself, unless it offers something, and then to each node alone."""

    def __init__(
        self,
        identity: Identity,
        packets: PresencePackets,
        registry: Registry,
        peers: PeerExchange,
        pinned: Protocol | None,
        *,
        visitor: bool = False,
    ) -> None:
        self._packets = packets
        self._registry = registry
        self._peers = peers
        self._visitor = visitor
        self._introduced = not visitor
        self._asked: set[Protocol] = set()
        registry.local.introduce(identity.instance_id, identity.hostname, identity.ip_list, identity.client)
        registry.local.metadata, registry.local.sequence = identity.metadata, 1
        self._pinned = pinned
        self._active: set[Protocol] = {pinned or PROTOCOLS[0]}
        self._default: Protocol = PROTOCOLS[0]
        self._sequence = 1
        self._services_changed = False

    @property
    def hidden(self) -> bool:
        """Whether no other node shall know of this one."""
        return not self._introduced and not self._registry.local.services

    def discover(self) -> list[Effect]:
        """Ask all nodes who they are (§4.1), a visitor those that it knows."""
        if self._visitor:
            return [self._packets.discover(node.ver, node.id) for node in self._live_peers()]
        if not self._pinned:
            self._active = self._registry.versions() | set(self._peers.named.values()) or self._active
        self._asked |= self._active
        return [self._packets.discover(ver) for ver in sorted(self._active, reverse=True)]

    def discover_everywhere(self) -> list[Effect]:
        """Ask all nodes who they are, whatever version they speak: each JS node logs one error at most."""
        self._peers.completed()
        return [self._packets.discover(ver) for ver in ([self._pinned] if self._pinned else PROTOCOLS)]

    def discover_others(self) -> list[Effect]:
        """Ask in the other version too when that leaves no line in a JS log: no such node is known, nor one that starts
        and may be one (§2.4). Nodes of another version than those that are known are found by their heartbeats."""
        if self._pinned or self._peers.complete or self._peers.named:
            return []
        if any(not node.bilingual for node in self._live_peers()):
            return []
        self._peers.completed()
        return [self._packets.discover(ver) for ver in PROTOCOLS if ver not in self._asked]

    def service_changed(self) -> None:
        """Note that the next INFO is a new one (§3.4)."""
        self._services_changed = True

    def announce(self) -> list[Effect]:
        """Tell the other nodes what this one offers."""
        if not self._visitor:
            return self._broadcast(self.info)
        if self.hidden:
            return []
        return [self._info_to(node.id) for node in self._live_peers()]

    def heartbeat(self, cpu: float | None) -> list[Effect]:
        """Tell the other nodes that this one lives."""
        self._registry.local.heard_cpu(cpu)
        if self.hidden:
            return []
        return self._broadcast(lambda ver: self._packets.heartbeat(ver, cpu))

    def leave(self) -> list[Effect]:
        """Announce that nothing is offered any more; requests that arrive now are still served (§4.2)."""
        self._registry.hide_services()
        self._services_changed = True
        return self.announce()

    def disconnect(self) -> list[Effect]:
        """Say good-bye."""
        if self.hidden:
            return []
        return self._broadcast(self._packets.disconnect)

    def ping_all(self, ping_id: str, epoch_ms: int) -> list[Effect]:
        """Ask every node for a sign of life."""
        return self._broadcast(lambda ver: self._packets.ping(ver, None, ping_id, epoch_ms))

    def ping(self, node_id: str, ping_id: str, epoch_ms: int) -> Publish:
        """Ask one node for a sign of life."""
        return self._packets.ping(self.version_for(node_id), node_id, ping_id, epoch_ms)

    def version_for(self, node_id: str) -> Protocol:
        """The protocol version to use towards a node."""
        node = self._registry.nodes.get(node_id)
        if node is not None and not node.local:
            return node.ver
        return self._peers.named.get(node_id) or self._pinned or PROTOCOLS[0]

    def info(self, ver: Protocol, node_id: str | None = None) -> Publish:
        """Tell a node, or all, what this one is and offers."""
        self._introduced = True
        if self._services_changed:
            self._services_changed = False
            self._sequence += 1
            self._registry.local.sequence = self._sequence
        return self._packets.info(ver, node_id, self._registry.local.services, self._sequence)

    def asked_in(self, ver: Protocol) -> None:
        """A node that starts asks in its version. Where no peer needs another one, broadcasts go out in that."""
        self._default = ver

    def met(self, node_id: str, *, new: bool, ready: bool) -> list[Effect]:
        """A node said what it is. The first one of its version: let it know this node, and where others of that version
        may be unknown, find them, and let them know it, too."""
        self._peers.met(node_id)
        self._default = PROTOCOLS[0]
        versions = set() if self._pinned else self._registry.versions() - self._active
        self._active |= versions
        effects: list[Effect] = []
        if self._visitor or self._peers.complete:
            if ready and (new if self._visitor else versions) and not self.hidden:
                effects.append(self._info_to(node_id))
            return effects
        for ver in sorted(versions):
            effects.append(self._packets.discover(ver))
            if ready:
                effects.append(self.info(ver))
        return effects

    def _live_peers(self) -> list[KnownNode]:
        return [node for node in self._registry.nodes.values() if node.available and not node.local]

    def _info_to(self, node_id: str) -> Publish:
        return self.info(self.version_for(node_id), node_id)

    def _broadcast(self, packet: Callable[[Protocol], Publish]) -> list[Effect]:
        """Once per version in use (§2.4)."""
        if not self._pinned:
            self._active = self._registry.versions() or {self._default}
        return [packet(ver) for ver in sorted(self._active, reverse=True)]
