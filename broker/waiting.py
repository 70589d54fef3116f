"""Requests of this node that wait for their answers, and what the end of a node means to them (moleculer protocol §4.3,
§4.4, §5.4)."""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import takewhile
from typing import Any

from broker.defaults import NODE_PROBE_AFTER_S
from broker.effects import Effect, NobodyReads, Notify, Pending, Publish, Reject
from broker.errors import QueueIsFullError, RequestRejectedError
from broker.packets import Ping, Protocol, Request
from broker.receiving import Receiving
from broker.registry import Change, Registry
from broker.topics import Topics
from broker.watch import Watch

PROBE = "probe:"
"""Begins the reply ids of the pings by which it is seen whether a node is still there."""


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
        """The NATS server says that no connection listens for a request, or for a ping: its node is gone."""
        if reply_id.startswith(PROBE):
            return self._unheard(reply_id.removeprefix(PROBE), now)
        pending = self.pending.get(reply_id)
        if pending is None:
            return []
        node = self._registry.nodes.get(pending.node_id) if pending.node_id else None
        lost: list[Effect] = []
        if node is not None and node.available:
            # What was sent before was heard, and will not be answered. What was sent after was not heard either: the
            # server says so of each, and then it can go elsewhere.
            earlier = takewhile(lambda other: other is not pending, list(self.pending.values()))
            lost = self.lose(node.id, now, earlier, unexpected=True)
        del self.pending[reply_id]
        error = RequestRejectedError({"action": pending.action, "nodeID": pending.node_id})
        return [*lost, Reject(pending, error, undelivered=True)]

    def lose(
        self,
        node_id: str,
        now: float,
        waiting: Iterable[Pending] | None = None,
        *,
        unexpected: bool,
        until: float = math.inf,
    ) -> list[Effect]:
        """A node is gone, and so are its answers: to all, to those of `waiting`, to what it was asked until then."""
        self._watch.forget(node_id)
        changes = self._registry.lose_node(node_id, now, unexpected=unexpected)
        return [*notices(changes), *self._not_answered(node_id, until, waiting)]

    def look_after(self, now: float) -> list[Effect]:
        """Pings to the nodes that keep somebody here waiting. The answers go to a name that nobody listens to: only
        whether the server knows of somebody who takes the question counts."""
        until = now - NODE_PROBE_AFTER_S
        old = takewhile(lambda pending: pending.since <= until, self.pending.values())
        waited_for = {pending.node_id for pending in old if pending.node_id} | self._streams.waits_for(until)
        asker = f"{self._node_id}~probe"
        effects: list[Effect] = []
        for node_id in self._watch.due([one for one in waited_for if one in self._registry.nodes], now):
            ping = Ping(ver=self._version_for(node_id), sender=asker, time=0, id=asker)
            effects.append(Publish(self._topics.to_node("PING", node_id), ping, reply_id=f"{PROBE}{node_id}"))
        return effects

    def began(self, node_id: str, now: float) -> None:
        """A process asked who is there, maybe in the place of another of that id."""
        if node_id in self._registry.nodes:
            self._watch.began(node_id, now)

    def replaced(self, node_id: str) -> list[Effect]:
        """Another process has the id of a node: what was asked before it began will not be answered."""
        return self._not_answered(node_id, self._watch.begun(node_id))

    def _unheard(self, node_id: str, now: float) -> list[Effect]:
        until = self._watch.unheard(node_id, now)
        return [] if until is None else self.lose(node_id, now, unexpected=True, until=until)

    def _not_answered(self, node_id: str, until: float, waiting: Iterable[Pending] | None = None) -> list[Effect]:
        """What a node was asked, and what it was sending or reading, until then, comes to nothing."""
        effects: list[Effect] = []
        asked = self.pending.values() if waiting is None else waiting
        for pending in [one for one in asked if one.node_id == node_id and one.since <= until]:
            del self.pending[pending.id]
            error = RequestRejectedError({"action": pending.action, "nodeID": node_id})
            effects.append(Reject(pending, error))
        effects.append(NobodyReads(node_id, RequestRejectedError({"action": None, "nodeID": node_id}), until))
        return effects + self._streams.lose(node_id, until=until)


def notices(changes: Iterable[Change]) -> Iterator[Effect]:
    """Changes of the registry as internal events."""
    return (Notify(event, payload) for event, payload in changes)
