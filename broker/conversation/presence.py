"""What a node says of itself to all others: who it is, that it lives, that it goes (moleculer protocol §2.4, §3, §4).

Broadcasts go out in a protocol version only while a live peer needs it, since a JS node logs an error for every
broadcast in the other version.
"""

from collections.abc import Callable, Collection

from broker.conversation.effects import Effect, Publish
from broker.conversation.peer_exchange import PeerExchange
from broker.conversation.presence_packets import PresencePackets
from broker.protocol.packets import PROTOCOLS, Protocol
from broker.registry.nodes import KnownNode
from broker.registry.registry import Registry


class Presence:
    """Decides which packets go out. `pinned` is the one version to speak; None for both, to each peer in its own. A
    `visitor` says nothing of itself, unless it offers something, and then to each node alone."""

    def __init__(
        self,
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
        self._pinned = pinned
        self._visitor = visitor
        self._introduced = not visitor
        self._default: Protocol = pinned or PROTOCOLS[0]
        """The version of broadcasts where no peer needs one."""
        self._newcomer = ""
        self._active: set[Protocol] = {self._default}
        self._asked: set[Protocol] = set()
        self._services_changed = False
        identity = packets.identity
        registry.local.introduce(identity.instance_id, identity.hostname, identity.ip_list, identity.client)
        registry.local.metadata, registry.local.sequence = identity.metadata, 1

    @property
    def hidden(self) -> bool:
        """Whether no other node shall know of this one."""
        return not self._introduced and not self._registry.local.services

    def discover(self) -> list[Effect]:
        """Ask all nodes who they are (§4.1), a visitor those that it knows."""
        if self._visitor:
            return [self._packets.discover(node.ver, node.id) for node in self._live_peers()]
        versions = self._spoken(self._peers.named.values())
        self._asked.update(versions)
        return [self._packets.discover(ver) for ver in versions]

    def discover_everywhere(self) -> list[Effect]:
        """Ask all nodes who they are, whatever version they speak: each JS node logs one error at most."""
        self._peers.complete = True
        return [self._packets.discover(ver) for ver in ([self._pinned] if self._pinned else PROTOCOLS)]

    def discover_others(self) -> list[Effect]:
        """Ask in the other version too when that leaves no line in a JS log: no such node is known, nor one that starts
        and may be one (§2.4). Nodes of another version than those that are known are found by their heartbeats."""
        if self._pinned or self._peers.complete or self._peers.named:
            return []
        if any(not node.bilingual for node in self._live_peers()):
            return []
        self._peers.complete = True
        return [self._packets.discover(ver) for ver in PROTOCOLS if ver not in self._asked]

    def service_changed(self) -> None:
        """The next INFO is a new one (§3.4)."""
        self._services_changed = True

    def announce(self) -> list[Effect]:
        if self._visitor and not self.hidden:
            return [self.info(node.ver, node.id) for node in self._live_peers()]
        return self._broadcast(self.info)

    def heartbeat(self, cpu: float | None) -> list[Effect]:
        self._registry.local.note_cpu(cpu)
        return self._broadcast(lambda ver: self._packets.heartbeat(ver, cpu))

    def leave(self) -> list[Effect]:
        """Say that nothing is offered any more; requests that arrive now are still served (§4.2)."""
        self._registry.hide_services()
        self._services_changed = True
        return self.announce()

    def disconnect(self) -> list[Effect]:
        return self._broadcast(self._packets.disconnect)

    def ping(self, node_id: str | None, ping_id: str, epoch_ms: int) -> list[Effect]:
        if node_id is None:
            return self._broadcast(lambda ver: self._packets.ping(ver, None, ping_id, epoch_ms))
        return [self._packets.ping(self.version_for(node_id), node_id, ping_id, epoch_ms)]

    def version_for(self, node_id: str) -> Protocol:
        node = self._registry.nodes.get(node_id)
        if node is not None and not node.local:
            return node.ver
        return self._peers.named.get(node_id) or self._pinned or PROTOCOLS[0]

    def info(self, ver: Protocol, node_id: str | None = None) -> Publish:
        """Say to a node, or to all, what this one is and offers."""
        self._introduced = True
        local = self._registry.local
        local.sequence += self._services_changed
        self._services_changed = False
        return self._packets.info(ver, node_id, local.services, local.sequence)

    def asked_in(self, ver: Protocol, node_id: str) -> None:
        """A node that starts asks in its version: while no peer needs another one, broadcasts go out in that. One that
        asks in both takes either."""
        node = self._registry.nodes.get(node_id)
        if node is None or not node.available:
            both = self._newcomer == node_id and ver != self._default
            self._newcomer, self._default = node_id, PROTOCOLS[0] if both else ver

    def met(self, node_id: str, *, new: bool, ready: bool) -> list[Effect]:
        """A node said what it is. The first one of its version: introduce this node to it, and where others of that
        version may be unknown, find them, and introduce it to them, too."""
        self._peers.met(node_id)
        self._default = PROTOCOLS[0]
        versions = set() if self._pinned else self._registry.versions() - self._active
        self._active |= versions
        effects: list[Effect] = []
        if self._visitor or self._peers.complete:
            if ready and (new if self._visitor else versions) and not self.hidden:
                effects.append(self.info(self.version_for(node_id), node_id))
            return effects
        for ver in sorted(versions):
            effects.append(self._packets.discover(ver))
            if ready:
                effects.append(self.info(ver))
        return effects

    def _live_peers(self) -> list[KnownNode]:
        return [node for node in self._registry.nodes.values() if node.available and not node.local]

    def _broadcast(self, packet: Callable[[Protocol], Publish]) -> list[Effect]:
        return [] if self.hidden else [packet(ver) for ver in self._spoken()]

    def _spoken(self, others: Collection[Protocol] = ()) -> list[Protocol]:
        """The versions of a broadcast, remembered as those in use (§2.4)."""
        if not self._pinned:
            self._active = self._registry.versions().union(others) or {self._default}
        return sorted(self._active, reverse=True)
