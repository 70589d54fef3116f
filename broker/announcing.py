"""What a node says of itself to everybody: who it is, that it lives, that it goes (moleculer protocol §2.4, §3, §4).

Broadcasts go out in a protocol version only while a live peer speaks it, since a JS node logs an error for every
broadcast in the other version.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from broker.effects import Effect, Publish
from broker.packets import PROTOCOLS, Command, Disconnect, Discover, Heartbeat, Info, Packet, Ping, Protocol
from broker.registry import Registry
from broker.topics import Topics


class Identity(NamedTuple):
    """What a node says of itself in INFO (§3.1)."""

    node_id: str
    instance_id: str
    hostname: str
    ip_list: list[str]
    client: dict[str, Any]
    metadata: dict[str, Any]


class Announcing:
    """Makes the packets. `pinned` is the one version to speak; None for both, to each peer in its own."""

    def __init__(self, identity: Identity, topics: Topics, registry: Registry, pinned: Protocol | None) -> None:
        self._identity = identity
        self._topics = topics
        self._registry = registry
        registry.local.introduce(identity.instance_id, identity.hostname, identity.ip_list, identity.client)
        registry.local.metadata, registry.local.sequence = identity.metadata, 1
        self._pinned = pinned
        self._active: set[Protocol] = {pinned or PROTOCOLS[0]}
        self._sequence = 1
        self._services_changed = False

    def discover(self) -> list[Effect]:
        """Ask everybody who they are (§4.1)."""
        return self._broadcast("DISCOVER", lambda ver: Discover(ver=ver, sender=self._identity.node_id))

    def discover_others(self) -> list[Effect]:
        """Nobody answered: ask in the other version too. Not asked at once, as it leaves a line in JS logs (§2.4)."""
        if self._pinned or self._registry.versions():
            return []
        unheard = [ver for ver in PROTOCOLS if ver not in self._active]
        return [self._discover_in(ver) for ver in unheard]

    def service_changed(self) -> None:
        """Note that the next INFO is a new one (§3.4)."""
        self._services_changed = True

    def announce(self) -> list[Effect]:
        """Tell everybody what this node offers."""
        return self._broadcast("INFO", self.info)

    def heartbeat(self, cpu: float | None) -> list[Effect]:
        """Tell everybody that this node lives."""
        self._registry.local.heard_cpu(cpu)
        return self._broadcast("HEARTBEAT", lambda ver: Heartbeat(ver=ver, sender=self._identity.node_id, cpu=cpu))

    def leave(self) -> list[Effect]:
        """Announce that nothing is offered any more; requests that arrive now are still served (§4.2)."""
        self._registry.hide_services()
        self._services_changed = True
        return self.announce()

    def disconnect(self) -> list[Effect]:
        """Say good-bye."""
        return self._broadcast("DISCONNECT", lambda ver: Disconnect(ver=ver, sender=self._identity.node_id))

    def ping_all(self, ping_id: str, epoch_ms: int) -> list[Effect]:
        """Ask every node for a sign of life."""
        return self._broadcast(
            "PING", lambda ver: Ping(ver=ver, sender=self._identity.node_id, time=epoch_ms, id=ping_id)
        )

    def version_for(self, node_id: str) -> Protocol:
        """The protocol version to use towards a node."""
        node = self._registry.nodes.get(node_id)
        return node.ver if node and not node.local else self._pinned or PROTOCOLS[0]

    def info(self, ver: Protocol) -> Info:
        """What this node is and offers."""
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

    def greet_new_versions(self, *, ready: bool) -> list[Effect]:
        """The first peer of a version came: find the others of that version, and let them know this node."""
        new = set() if self._pinned else self._registry.versions() - self._active
        self._active |= new
        effects: list[Effect] = []
        for ver in sorted(new):
            effects.append(self._discover_in(ver))
            if ready:
                effects.append(Publish(self._topics.broadcast("INFO"), self.info(ver)))
        return effects

    def _discover_in(self, ver: Protocol) -> Publish:
        return Publish(self._topics.broadcast("DISCOVER"), Discover(ver=ver, sender=self._identity.node_id))

    def _broadcast(self, command: Command, packet: Callable[[Protocol], Packet]) -> list[Effect]:
        """Once per version in use (§2.4)."""
        if not self._pinned:
            self._active = self._registry.versions() or self._active
        return [Publish(self._topics.broadcast(command), packet(ver)) for ver in sorted(self._active, reverse=True)]
