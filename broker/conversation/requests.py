"""Requests of this node that wait for their answers, and what the end of a node means to them (moleculer protocol §4.3,
§4.4, §5.4)."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice, takewhile
from typing import Any

from msgspec import UNSET, UnsetType

from broker.conversation.effects import Effect, NobodyReads, Notify, Pending, Publish, Reject, Responsive
from broker.conversation.liveness import Liveness, Probe
from broker.conversation.presence_packets import PresencePackets
from broker.defaults import ANSWER_LOST_S, NODE_PROBE_AFTER_S, REQUESTS_ASKED
from broker.errors import (
    BrokerDisconnectedError,
    QueueIsFullError,
    RequestRejectedError,
    publish_denied,
)
from broker.protocol.packets import PROTOCOLS, Id, Protocol, Request, Response
from broker.protocol.topics import Topics
from broker.registry.nodes import SPOKEN, KnownNode
from broker.registry.registry import Change, Registry
from broker.streams.incoming import IncomingStreams

PROBE = "probe:"
"""Begins the reply ids of liveness probes, and the ids of those that are pings."""


class PendingRequests:
    """At most `limit` requests. `streams` are those on their way here, which end with their nodes as well;
    `version_for` gives the protocol version of a node, and `pinned` the one that this node speaks to all."""

    def __init__(
        self,
        node_id: str,
        topics: Topics,
        packets: PresencePackets,
        registry: Registry,
        streams: IncomingStreams,
        version_for: Callable[[str], Protocol],
        pinned: Protocol | None,
        limit: int,
    ) -> None:
        self.pending: dict[Id, Pending] = {}
        """By request id, the oldest first."""
        self._node_id = node_id
        self._topics = topics
        self._packets = packets
        self._registry = registry
        self._streams = streams
        self._version_for = version_for
        self._spoken = (pinned,) if pinned else PROTOCOLS
        self._limit = limit
        self._liveness = Liveness()
        self._missed: set[str] = set()
        """Nodes that are gone since a request had no responders, but may yet answer what they were asked before."""
        self._doubts: dict[Id, tuple[float, str]] = {}
        """Requests of which the answer may be lost, since when, and by what."""

    def expect(self, packet: Request, node_id: str | None, waiter: Any, now: float) -> None:
        """A call is about to be sent to a node, or with None to whichever NATS chooses (§5.7).

        Raises QueueIsFullError when too many wait for answers already (§5.2).
        """
        if len(self.pending) >= self._limit:
            data = {"action": packet.action, "nodeID": self._node_id}
            raise QueueIsFullError(data | {"size": len(self.pending), "limit": self._limit})
        self.pending[packet.id] = Pending(packet.id, node_id, packet.action, waiter, now, bool(packet.timeout))

    def _subject(self, pending: Pending) -> str:
        if pending.node_id is None:
            return self._topics.balanced_request(pending.action)
        return self._topics.to_node("REQ", pending.node_id)

    def answered(self, response: Response) -> Pending | None:
        """The call that an answer ends, as nearly every answer does; it is no longer pending then.

        None for an answer that has something odd or more to it: that is for `Transit.receive`.
        """
        pending = self.pending.get(response.id)
        if pending is None or pending.node_id != response.sender or response.ver not in self._spoken:
            return None
        if response.stream or response.sequence or self._streams.open or response.sender in self._registry.unresponsive:
            return None
        del self.pending[response.id]
        if self._doubts:
            self._doubts.pop(response.id, None)
        return pending

    def is_asked(self, request_id: Id, sender: str) -> bool:
        """Whether a node may answer a request: the one that was asked, or any where NATS chose it (§5.7)."""
        pending = self.pending.get(request_id)
        return pending is None or pending.node_id is None or pending.node_id == sender

    def take(self, request_id: Id) -> Pending | None:
        """The request that is answered now; None when its call has ended."""
        if self._doubts:
            self._doubts.pop(request_id, None)
        return self.pending.pop(request_id, None)

    def nobody_listens(self, reply_id: str, now: float) -> list[Effect]:
        """The NATS server answers that a request, or a liveness probe, has no responders."""
        if reply_id.startswith(PROBE):
            return self._refused(_probe(reply_id), now)
        pending = self.take(reply_id)
        if pending is None:
            return []
        error = RequestRejectedError({"action": pending.action, "nodeID": pending.node_id})
        missed = self._miss(pending.node_id, pending.since, now) if pending.node_id else []
        return [*missed, Reject(pending, error, undelivered=True)]

    def denied(self, subject: str) -> list[Effect]:
        """The NATS user of this node may not publish to a subject."""
        effects: list[Effect] = []
        for pending in [one for one in self.pending.values() if self._subject(one) == subject]:
            self.take(pending.id)
            effects.append(Reject(pending, publish_denied(subject)))
        return effects

    def nobody_reads(self, node_id: str, now: float) -> list[Effect]:
        """The same of a chunk of a stream: its reader, a node like this, gives up all streams with its connection."""
        return [*self._miss(node_id, now, now), NobodyReads(node_id, now)]

    def lose(self, node_id: str, now: float, *, unexpected: bool) -> list[Effect]:
        """A node is gone, and so are its answers."""
        self._liveness.forget(node_id)
        return self._gone(node_id, now, unexpected=unexpected, until=math.inf)

    def may_answer(self, node: KnownNode) -> bool:
        """Whether answers of a node are expected."""
        return node.available or node.id in self._missed

    def may_return(self, action: str, node_id: str | None, now: float, *, patient: bool) -> bool:
        """Whether an action that no node offers may be offered again soon: by a node, or the given one, that was lost a
        moment ago and may only be reconnecting. Some reconnect late after an outage, or are started again; that long
        only who is `patient` waits."""
        sought = self._liveness.sought(now) if patient else self._missed
        return any(self._registry.offered(one, action) for one in (sought if node_id is None else sought & {node_id}))

    def look_after(self, now: float, readers: Collection[str] = ()) -> list[Effect]:
        """Probe the nodes that keep calls or streams waiting, and those that were missed. `readers` are the nodes that
        writers of streams wait for."""
        until = now - NODE_PROBE_AFTER_S
        waited_for = self._streams.waits_for(until).union(readers)
        for pending in self.pending.values():
            if pending.since > until:
                break  # and so are all that follow
            if pending.node_id is not None:
                waited_for.add(pending.node_id)
        known = [node_id for node_id in waited_for if node_id in self._registry.nodes]
        effects: list[Effect] = [self._question(probe, now) for probe in self._liveness.probes(known, now)]
        for node_id in self._liveness.unresponsive(now):
            effects += self._avoid(node_id)
        return effects + self._without_answer(now)

    def _question(self, probe: Probe, now: float) -> Publish:
        """A ping, which is answered at once. A node that may be gone is asked who it is: by that answer it is known
        again, and it may lack the right to receive pings."""
        node_id = probe.node_id
        version = self._version_for(node_id)
        reply_id = f"{PROBE}{probe.number}:{probe.sent!r}:{node_id}"
        node = self._registry.nodes.get(node_id)
        if node is None or not node.available or self._liveness.is_unreachable(node_id, now):
            return self._packets.discover(version, node_id, reply_id)
        return self._packets.ping(version, node_id, reply_id, requests=self._doubted_at(node), reply_id=reply_id)

    def _avoid(self, node_id: str) -> list[Effect]:
        """Call a node only when no other offers the action, from now on."""
        node = self._registry.nodes.get(node_id)
        if node is None or not node.available or node_id in self._registry.unresponsive:
            return []
        self._registry.avoid(node_id, avoided=True)
        return [Responsive(node_id, answers=False)]

    def responds(self, node_id: str) -> list[Effect]:
        """A node that may have been avoided sends again."""
        self._liveness.answered(node_id)
        if node_id not in self._registry.unresponsive:
            return []
        self._registry.avoid(node_id, avoided=False)
        return [Responsive(node_id, answers=True)]

    def servers_changed(self, now: float) -> None:
        """NATS servers came or went, and nodes may have lost their connection with them."""
        self._liveness.moved(now)

    def resume(self, now: float) -> None:
        """Nothing could be received until now."""
        self._liveness.resume(now)

    def doubt(self, until: float, now: float, node_id: str | None = None) -> None:
        """This node, or the given one, was not connected, so that what was asked until then may have been lost, or its
        answer. Nodes of this kind tell by their answers to the next probes. Others cannot, so their answers are waited
        for as long as the caller wants."""
        cause = f"Node '{node_id}' reconnected or was started again" if node_id else "The connection to NATS was lost"
        for pending in self._asked_until(until, node_id):
            self._doubts[pending.id] = now, cause

    def _doubted_at(self, node: KnownNode) -> list[Id] | UnsetType:
        if not self._doubts or SPOKEN not in node.client:
            return UNSET
        doubted = (one for one in self._doubts if self.pending[one].node_id == node.id)
        return list(islice(doubted, REQUESTS_ASKED)) or UNSET

    def still_in_work(self, node_id: str, requests: Any) -> list[Effect]:
        """A node has told of requests whether it works at them. What it does not, was lost on either way."""
        effects: list[Effect] = []
        for request_id, in_work in requests.items() if isinstance(requests, dict) else ():
            pending = self.pending.get(request_id)
            if pending is not None and pending.node_id == node_id and request_id in self._doubts:
                _, cause = self._doubts.pop(request_id)
                if not in_work:
                    effects.append(self._lost(pending, cause))
        return effects

    def _without_answer(self, now: float) -> list[Effect]:
        """A call without a timeout must not wait for ever for an answer that may be lost."""
        overdue = [
            (self.pending[one], cause) for one, (since, cause) in self._doubts.items() if now - since > ANSWER_LOST_S
        ]
        return [self._lost(pending, cause) for pending, cause in overdue if not pending.timed]

    def _lost(self, pending: Pending, cause: str) -> Reject:
        self.take(pending.id)
        told = f"{cause} during the call of '{pending.action}', and the call or its answer was lost."
        return Reject(pending, BrokerDisconnectedError(told))

    def began(self, node_id: str, now: float) -> None:
        """A process asked who is there, maybe in the place of another of that id."""
        if node_id in self._registry.nodes:
            self._liveness.began(node_id, now)
            self.doubt(now, now, node_id)

    def found(self, node_id: str) -> None:
        """A node has said that it is there."""
        self._missed.discard(node_id)
        self._liveness.found(node_id)

    def replaced(self, node_id: str) -> list[Effect]:
        """Another process has the id of a node: what was asked before it began will not be answered."""
        return self._not_answered(node_id, self._liveness.begun(node_id))

    def _miss(self, node_id: str, since: float, now: float) -> list[Effect]:
        """What was sent to a node then had no responders, so nothing more is sent there. What was sent before was
        delivered: it is answered yet when the node only reconnects, and comes to nothing when it does not return."""
        changes = self._registry.lose_node(node_id, now, unexpected=True)
        if changes:
            self._missed.add(node_id)
            self._liveness.missed(node_id, since)
        return list(notices(changes))

    def _refused(self, probe: Probe, now: float) -> list[Effect]:
        node = self._registry.nodes.get(probe.node_id)
        if not self._liveness.refused(probe) or node is None or not self.may_answer(node):
            return []
        return self._gone(node.id, now, unexpected=True, until=probe.sent)

    def _gone(self, node_id: str, now: float, *, unexpected: bool, until: float) -> list[Effect]:
        self._missed.discard(node_id)
        changes = self._registry.lose_node(node_id, now, unexpected=unexpected)
        return [*notices(changes), *self._not_answered(node_id, until)]

    def _not_answered(self, node_id: str, until: float) -> list[Effect]:
        """What a node was asked, and what it was sending or reading, until then, comes to nothing."""
        effects: list[Effect] = []
        for pending in self._asked_until(until, node_id):
            self.take(pending.id)
            error = RequestRejectedError({"action": pending.action, "nodeID": node_id})
            effects.append(Reject(pending, error))
        self._streams.lose(node_id, until=until)
        return [*effects, NobodyReads(node_id, until)]

    def _asked_until(self, until: float, node_id: str | None) -> list[Pending]:
        """What a node, or any, was asked until then."""
        asked = takewhile(lambda one: one.since <= until, self.pending.values())
        return [one for one in asked if node_id is None or one.node_id == node_id]


def notices(changes: Iterable[Change]) -> Iterator[Effect]:
    """Changes of the registry as internal events."""
    return (Notify(event, payload) for event, payload in changes)


def _probe(reply_id: str) -> Probe:
    number, sent, node_id = reply_id.removeprefix(PROBE).split(":", 2)
    return Probe(node_id, int(number), float(sent))
