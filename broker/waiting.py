"""Requests of this node that wait for their answers, and what the end of a node means to them (moleculer protocol §4.3,
§4.4, §5.4)."""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import takewhile
from typing import Any

from broker.defaults import NODE_PROBE_AFTER_S
from broker.effects import Effect, NobodyReads, Notify, Pending, Publish, Reject
from broker.errors import QueueIsFullError, RequestRejectedError
from broker.packets import Discover, Ping, Protocol, Request
from broker.receiving import Receiving
from broker.registry import Change, KnownNode, Registry
from broker.topics import Topics
from broker.watch import Watch

PROBE = "probe"
"""Begins the reply ids of what nodes are asked to see whether they are still there; the time and the node follow."""


class Waiting:
    """At most `limit` requests. `streams` are those on their way here, which end with their nodes as well;
    `version_for` tells the protocol version of a node."""

    def __init__(
        self,
        node_id: str,
        topics: Topics,
        registry: Registry,
        streams: Receiving,
        version_for: Callable[[str], Protocol],
        limit: int,
    ) -> None:
        self.pending: dict[str, Pending] = {}
        """By request id, the oldest first."""
        self._node_id = node_id
        self._topics = topics
        self._registry = registry
        self._streams = streams
        self._version_for = version_for
        self._limit = limit
        self._watch = Watch()
        self._missed: set[str] = set()
        """Nodes that count as gone since a request was not heard, but may yet answer what they were asked before."""

    def request(self, packet: Request, node_id: str | None, waiter: Any, now: float) -> list[Effect]:
        """Send a call to a node, or with None to whichever NATS chooses (§5.7).

        Raises QueueIsFullError when too many wait for answers already (§5.2).
        """
        if len(self.pending) >= self._limit:
            data = {"action": packet.action, "nodeID": self._node_id}
            raise QueueIsFullError(data | {"size": len(self.pending), "limit": self._limit})
        self.pending[packet.id] = Pending(packet.id, node_id, packet.action, waiter, now)
        if node_id is None:
            return [Publish(self._topics.balanced_request(packet.action), packet, reply_id=packet.id)]
        return [Publish(self._topics.to_node("REQ", node_id), packet, reply_id=packet.id)]

    def take(self, request_id: str) -> Pending | None:
        """The request that is answered now; None when nobody waits for it any more."""
        return self.pending.pop(request_id, None)

    def nobody_listens(self, reply_id: str, now: float) -> list[Effect]:
        """The NATS server says that no connection listens for a request, or for a question whether a node is there."""
        kind, _, question = reply_id.partition(":")
        if kind == PROBE:
            asked, _, node_id = question.partition(":")
            return self._unheard(node_id, float(asked), now)
        pending = self.pending.pop(reply_id, None)
        if pending is None:
            return []
        error = RequestRejectedError({"action": pending.action, "nodeID": pending.node_id})
        missed = self._miss(pending.node_id, pending.since, now) if pending.node_id else []
        return [*missed, Reject(pending, error, undelivered=True)]

    def nobody_reads(self, node_id: str, now: float) -> list[Effect]:
        """The same of a chunk of a stream: its reader, a node like this, gives up all streams with its connection."""
        error = RequestRejectedError({"action": None, "nodeID": node_id})
        return [*self._miss(node_id, now, now), NobodyReads(node_id, error, now)]

    def lose(self, node_id: str, now: float, *, unexpected: bool) -> list[Effect]:
        """A node is gone, and so are its answers."""
        self._watch.forget(node_id)
        return self._gone(node_id, now, unexpected=unexpected, until=math.inf)

    def may_answer(self, node: KnownNode) -> bool:
        """Whether answers of a node are expected."""
        return node.available or node.id in self._missed

    def look_after(self, now: float) -> list[Effect]:
        """Questions to the nodes that keep somebody here waiting, or were not heard. Only whether the server knows of
        somebody who takes it counts: the answers to pings go to a name that nobody listens to. A node that did not hear
        is asked who it is, so that it is known again by its answer; and it may have no right to hear pings."""
        until = now - NODE_PROBE_AFTER_S
        old = takewhile(lambda pending: pending.since <= until, self.pending.values())
        waited_for = {pending.node_id for pending in old if pending.node_id} | self._streams.waits_for(until)
        due = self._watch.due([one for one in waited_for if one in self._registry.nodes], now)
        return [self._question(node_id, f"{PROBE}:{now!r}:{node_id}") for node_id in due]

    def _question(self, node_id: str, reply_id: str) -> Publish:
        version = self._version_for(node_id)
        node = self._registry.nodes.get(node_id)
        if node is None or not node.available or self._watch.suspects(node_id):
            who = Discover(ver=version, sender=self._node_id)
            return Publish(self._topics.to_node("DISCOVER", node_id), who, reply_id=reply_id)
        asker = f"{self._node_id}~probe"
        ping = Ping(ver=version, sender=asker, time=0, id=asker)
        return Publish(self._topics.to_node("PING", node_id), ping, reply_id=reply_id)

    def began(self, node_id: str, now: float) -> None:
        """A process asked who is there, maybe in the place of another of that id."""
        if node_id in self._registry.nodes:
            self._watch.began(node_id, now)

    def found(self, node_id: str) -> None:
        """A node has said that it is there."""
        self._missed.discard(node_id)
        self._watch.found(node_id)

    def replaced(self, node_id: str) -> list[Effect]:
        """Another process has the id of a node: what was asked before it began will not be answered."""
        return self._not_answered(node_id, self._watch.begun(node_id))

    def _miss(self, node_id: str, since: float, now: float) -> list[Effect]:
        """What was sent to a node then was not heard, so nothing more is sent there. What was sent before was heard: it
        is answered yet when the node has only lost its connection, and comes to nothing when nobody returns."""
        changes = self._registry.lose_node(node_id, now, unexpected=True)
        if changes:
            self._missed.add(node_id)
            self._watch.missed(node_id, since)
        return list(notices(changes))

    def _unheard(self, node_id: str, asked: float, now: float) -> list[Effect]:
        node = self._registry.nodes.get(node_id)
        if not self._watch.unheard(node_id, asked) or node is None or not self.may_answer(node):
            return []
        return self._gone(node_id, now, unexpected=True, until=asked)

    def _gone(self, node_id: str, now: float, *, unexpected: bool, until: float) -> list[Effect]:
        self._missed.discard(node_id)
        changes = self._registry.lose_node(node_id, now, unexpected=unexpected)
        return [*notices(changes), *self._not_answered(node_id, until)]

    def _not_answered(self, node_id: str, until: float) -> list[Effect]:
        """What a node was asked, and what it was sending or reading, until then, comes to nothing."""
        effects: list[Effect] = []
        for pending in [one for one in self.pending.values() if one.node_id == node_id and one.since <= until]:
            del self.pending[pending.id]
            error = RequestRejectedError({"action": pending.action, "nodeID": node_id})
            effects.append(Reject(pending, error))
        effects.append(NobodyReads(node_id, RequestRejectedError({"action": None, "nodeID": node_id}), until))
        return effects + self._streams.lose(node_id, until=until)


def notices(changes: Iterable[Change]) -> Iterator[Effect]:
    """Changes of the registry as internal events."""
    return (Notify(event, payload) for event, payload in changes)
