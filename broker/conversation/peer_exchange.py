"""How nodes like this ask each other whom they know, and how a node that comes into a cluster finds the others without
a broadcast in a version that they do not speak (moleculer protocol §4.1).

JS nodes log an error for each broadcast in the other version, and none for a DISCOVER that goes to them alone in their
own. They do not subscribe to PEERS. Of the nodes that do, one answers, by a queue group: so what it knows must be
complete. It is when another node has answered it, when both versions were asked, or when every node has had the time
for a heartbeat.
"""

from collections.abc import Iterator
from typing import Any

from broker.conversation.effects import Effect, Log, Publish
from broker.conversation.presence_packets import PresencePackets
from broker.defaults import (
    NODES_KNOWN,
    PEERS_GREET_AGAIN_S,
    PEERS_PACKET_BYTES,
    PEERS_STARTING,
    PEERS_STARTING_S,
)
from broker.protocol.packets import PROTOCOLS, Peers, Protocol
from broker.protocol.topics import is_token
from broker.registry.registry import Registry

GREETING = "peer:"
"""Begins the reply ids of the questions to nodes that are known by their names alone; the name follows."""


class PeerExchange:
    """No I/O and no clock: `now` is a monotonic time in seconds."""

    def __init__(self, packets: PresencePackets, registry: Registry, pinned: Protocol | None) -> None:
        self.asker = f"{packets.identity.node_id}~{packets.identity.instance_id[:8]}"
        """The name to ask under: nodes ignore what seems to come from themselves."""
        self.named: dict[str, Protocol] = {}
        """The nodes that are known by their names, and have not said yet what they offer."""
        self.asking = False
        """Whether an answer is awaited; others are ignored."""
        self.answered = False
        """Whether another node has reported all that it knows."""
        self.only: str | None = None
        """The one node that is looked for; None for all."""
        self.listed: set[str] = set()
        """The names of all nodes of the report, those included that are not greeted."""
        self.complete = False
        """Whether no node of the cluster can be unknown, but for one that comes."""
        self._packets = packets
        self._registry = registry
        self._pinned = pinned
        self._complete_at: float | None = None
        self._greeted = 0.0
        self._starting: dict[str, float] = {}

    def ask(self, only: str | None = None) -> Publish:
        """The question whom others know. With `only`, no other node is greeted."""
        self.only, self.asking, self.answered, self.listed = only, True, False, set()
        packet = Peers(ver=self._pinned or PROTOCOLS[0], sender=self.asker)
        return Publish(self._packets.topics.broadcast("PEERS"), packet)

    def on_peers(self, packet: Peers) -> list[Effect]:
        """A question, or a part of an answer. All nodes are greeted when the last part is there."""
        if packet.nodes is None:
            return self._answer(packet)
        if not self.asking:
            return []
        effects: list[Effect] = []
        for node_id, ver in self._read(packet.nodes):
            if len(self.listed) >= NODES_KNOWN:
                what = f"'{packet.sender}' names more than {NODES_KNOWN} nodes; no more of them are asked who they are"
                effects.append(Log(what))
                break
            self.listed.add(node_id)
            known = self._registry.nodes.get(node_id)
            if self.only in (None, node_id) and (known is None or not known.available):
                self.named[node_id] = ver
        if not packet.more:
            self.asking, self.answered = False, True
            self.complete = self.complete or self.only is None
            effects += self.greet()
        return effects

    def greet(self) -> list[Effect]:
        """Ask each node that is known by its name alone what it offers."""
        return [self._packets.discover(ver, node_id, f"{GREETING}{node_id}") for node_id, ver in self.named.items()]

    def met(self, node_id: str) -> None:
        """A node has said what it offers, or is not there."""
        self._starting.pop(node_id, None)
        self.named.pop(node_id, None)

    # Getting to know the cluster without an answer

    @property
    def searching(self) -> bool:
        return self._complete_at is not None and not self.complete

    def search(self, now: float, complete_after_s: float) -> None:
        """From now on nodes that start are noted; after that time each other node has sent a heartbeat."""
        self._complete_at = now + complete_after_s

    def starts(self, node_id: str, ver: Protocol, now: float) -> None:
        """A node asks who is there. It is greeted until it says what it offers, which a node that starts does not."""
        known = node_id in self._registry.nodes or node_id in self.named
        if self.searching and not known and len(self._starting) < PEERS_STARTING:
            self.named[node_id] = ver
            self._starting[node_id] = now

    def look_around(self, now: float) -> list[Effect]:
        """While nodes may be unknown: greet those again that were starting, and give up those that do not come."""
        if now - self._greeted < PEERS_GREET_AGAIN_S or self._complete_at is None:
            return []
        self._greeted = now
        self.complete = self.complete or now >= self._complete_at
        for node_id in [one for one, since in self._starting.items() if now - since > PEERS_STARTING_S]:
            self.met(node_id)
        return self.greet()

    def _answer(self, question: Peers) -> list[Effect]:
        """The nodes that are there, this one too, in packets that fit into a message."""
        parts: list[list[dict[str, Any]]] = [[]]
        size = 0
        for node in self._registry.nodes.values():
            if node.available:
                length = len(node.id.encode()) + 32  # the JSON around it
                if parts[-1] and size + length > PEERS_PACKET_BYTES:
                    parts.append([])
                    size = 0
                size += length
                parts[-1].append({"id": node.id, "ver": question.ver if node.local else node.ver})
        sender, subject = self._packets.identity.node_id, self._packets.topics.to_node("PEERS", question.sender)
        packets = (Peers(ver=question.ver, sender=sender, nodes=nodes, more=nodes is not parts[-1]) for nodes in parts)
        return [Publish(subject, packet) for packet in packets]

    def _read(self, nodes: list[Any]) -> Iterator[tuple[str, Protocol]]:
        for entry in nodes:
            match entry:
                case {"id": str(node_id), "ver": "4" | "5" as ver}:
                    if self._pinned in (None, ver) and is_token(node_id):
                        yield node_id, ver
