"""The packets by which nodes know of each other, made in one place (moleculer protocol §3.1, §4)."""

from typing import Any, NamedTuple

from msgspec import UNSET

from broker.conversation.effects import Publish
from broker.protocol.packets import Command, Disconnect, Discover, Heartbeat, Info, Packet, Ping, Protocol
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
        self.identity = identity
        self.topics = topics

    def discover(self, ver: Protocol, node_id: str | None = None, reply_id: str | None = None) -> Publish:
        return self._publish("DISCOVER", Discover(ver=ver, sender=self.identity.node_id), node_id, reply_id)

    def info(self, ver: Protocol, node_id: str | None, services: list[dict[str, Any]], sequence: int) -> Publish:
        me = self.identity
        info = Info(
            ver=ver,
            sender=me.node_id,
            services=services,
            ip_list=me.ip_list,
            hostname=me.hostname,
            client=dict(me.client),
            config={},
            instance_id=me.instance_id,
            metadata=me.metadata,
            sequence=sequence,
        )
        return self._publish("INFO", info, node_id)

    def heartbeat(self, ver: Protocol, cpu: float | None) -> Publish:
        return self._publish("HEARTBEAT", Heartbeat(ver=ver, sender=self.identity.node_id, cpu=cpu))

    def disconnect(self, ver: Protocol) -> Publish:
        return self._publish("DISCONNECT", Disconnect(ver=ver, sender=self.identity.node_id))

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
        ping = Ping(ver=ver, sender=sender or self.identity.node_id, time=time, id=ping_id, requests=requests)
        return self._publish("PING", ping, node_id, reply_id)

    def _publish(
        self, command: Command, packet: Packet, node_id: str | None = None, reply_id: str | None = None
    ) -> Publish:
        subject = self.topics.broadcast(command) if node_id is None else self.topics.to_node(command, node_id)
        return Publish(subject, packet, reply_id)
