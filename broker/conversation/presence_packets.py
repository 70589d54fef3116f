"""The packets by which nodes know of each other, made in one place (moleculer protocol §3.1, §4)."""

from typing import Any, NamedTuple

from msgspec import UNSET

from broker.conversation.effects import Publish
from broker.protocol.packets import Disconnect, Discover, Heartbeat, Info, Ping, Protocol
from broker.protocol.topics import Topics


class Identity(NamedTuple):
    """What a node says of itself in INFO (§3.1)."""

    node_id: str
    instance_id: str
    hostname: str
    ip_list: list[str]
    client: dict[str, Any]
    metadata: dict[str, Any]


class PresencePackets:
    """Those of one node: to one other, or to all where no node is named."""

    def __init__(self, identity: Identity, topics: Topics) -> None:
        self._identity = identity
        self._topics = topics

    def discover(self, ver: Protocol, node_id: str | None = None, reply_id: str | None = None) -> Publish:
        """Ask who is there, or who a node is."""
        subject = self._topics.broadcast("DISCOVER") if node_id is None else self._topics.to_node("DISCOVER", node_id)
        return Publish(subject, Discover(ver=ver, sender=self._identity.node_id), reply_id)

    def info(self, ver: Protocol, node_id: str | None, services: list[dict[str, Any]], sequence: int) -> Publish:
        """What this node is and offers."""
        subject = self._topics.broadcast("INFO") if node_id is None else self._topics.to_node("INFO", node_id)
        info = Info(
            ver=ver,
            sender=self._identity.node_id,
            services=services,
            ip_list=list(self._identity.ip_list),
            hostname=self._identity.hostname,
            client=dict(self._identity.client),
            config={},
            instance_id=self._identity.instance_id,
            metadata=self._identity.metadata,
            sequence=sequence,
        )
        return Publish(subject, info)

    def heartbeat(self, ver: Protocol, cpu: float | None) -> Publish:
        """This node lives."""
        beat = Heartbeat(ver=ver, sender=self._identity.node_id, cpu=cpu)
        return Publish(self._topics.broadcast("HEARTBEAT"), beat)

    def disconnect(self, ver: Protocol) -> Publish:
        """This node leaves."""
        return Publish(self._topics.broadcast("DISCONNECT"), Disconnect(ver=ver, sender=self._identity.node_id))

    def ping(
        self,
        ver: Protocol,
        node_id: str | None,
        ping_id: str,
        time: int = 0,
        *,
        requests: Any = UNSET,
        reply_id: str | None = None,
        sender: str | None = None,
    ) -> Publish:
        """Ask for a sign of life; with `sender`, under another name."""
        subject = self._topics.broadcast("PING") if node_id is None else self._topics.to_node("PING", node_id)
        ping = Ping(ver=ver, sender=sender or self._identity.node_id, time=time, id=ping_id, requests=requests)
        return Publish(subject, ping, reply_id)
