"""Requests of this node that wait for their answers, and what the end of a node means to them (moleculer protocol §4.3,
§4.4, §5.4)."""

import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import takewhile
from typing import Any

from msgspec import UNSET, UnsetType

from broker.conversation.effects import Effect, Log, Notify, Pending, Publish, ReaderGone, Reject
from broker.conversation.liveness import PROBE, Liveness, Probe
from broker.conversation.presence_packets import PresencePackets
from broker.defaults import ANSWER_LOST_S, NODE_PROBE_AFTER_S, REQUESTS_ASKED
from broker.errors import (
    BrokerDisconnectedError,
    MoleculerError,
    QueueIsFullError,
    RequestRejectedError,
    publish_denied,
)
from broker.protocol.packets import PROTOCOLS, Id, Protocol, Request, Response
from broker.registry.nodes import SPOKEN, KnownNode
from broker.registry.registry import Change, Registry
from broker.streams.incoming import IncomingStreams

UNRESPONSIVE = (
    "Node '%s' is connected and answers nothing: it is frozen, or its event loop is blocked. Calls go to other nodes "
    "that offer the action until it answers; calls that are already there keep waiting"
)


class PendingRequests:
    """At most `limit` requests. `streams` are those on their way here, which end with their nodes as well;
    `version_for` gives the protocol version of a node, and `pinned` the one that this node speaks to all."""

    def __init__(
        self,
        packets: PresencePackets,
        registry: Registry,
        streams: IncomingStreams,
        version_for: Callable[[str], Protocol],
        pinned: Protocol | None,
        limit: int,
    ) -> None:
        self.pending: dict[Id, Pending] = {}
        """By request id, the oldest first."""
        self.liveness = Liveness()
        self._packets = packets
        self._registry = registry
        self._streams = streams
        self._version_for = version_for
        self._spoken = (pinned,) if pinned else PROTOCOLS
        self._limit = limit
        self._missed: set[str] = set()
        """Nodes that are gone since a request had no responders, but may yet answer what they were asked before."""
        self._doubted_until = -math.inf
        """No request that was made later is in doubt."""

    def expect(self, packet: Request, node_id: str | None, waiter: Any, now: float) -> None:
        """A call is about to be sent to a node, or with None to whichever NATS chooses (§5.7).

        Raises QueueIsFullError when too many wait for answers already (§5.2).
        """
        if len(self.pending) >= self._limit:
            data = {"action": packet.action, "nodeID": self._packets.identity.node_id}
            raise QueueIsFullError(data | {"size": len(self.pending), "limit": self._limit})
        self.pending[packet.id] = Pending(packet.id, node_id, packet.action, waiter, now, bool(packet.timeout))

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
        return pending

    def is_asked(self, request_id: Id, sender: str) -> bool:
        """Whether a node may answer a request: the one that was asked, or any where NATS chose it (§5.7)."""
        pending = self.pending.get(request_id)
        return pending is None or pending.node_id is None or pending.node_id == sender

    def take(self, request_id: Id) -> Pending | None:
        """The request that is answered now; None when its call has ended."""
        return self.pending.pop(request_id, None)

    # The server's answers, and what it refuses

    def no_responders(self, reply_id: str, now: float) -> list[Effect]:
        """The NATS server answers that a request, or a liveness probe, has no responders."""
        if reply_id.startswith(PROBE):
            probe = Probe.of(reply_id)
            node = self._registry.nodes.get(probe.node_id)
            if not self.liveness.refused(probe) or node is None or not self.may_answer(node):
                return []
            return self._gone(probe.node_id, now, unexpected=True, until=probe.sent)
        pending = self.take(reply_id)
        if pending is None:
            return []
        missed = self._miss(pending.node_id, pending.since, now) if pending.node_id else []
        return [*missed, Reject(pending, _rejection(pending), undelivered=True)]

    def reader_unreachable(self, node_id: str, now: float) -> list[Effect]:
        """The same of a chunk of a stream: its reader, a node like this, gives up all streams with its connection."""
        return [*self._miss(node_id, now, now), ReaderGone(node_id, now)]

    def denied(self, subject: str) -> list[Effect]:
        """The NATS user of this node may not publish to a subject."""
        asked = [one for one in self.pending.values() if self._subject(one) == subject]
        return self._reject(asked, lambda _: publish_denied(subject))

    # The end of a node

    def lose(self, node_id: str, now: float, *, unexpected: bool) -> list[Effect]:
        """A node is gone, and so are its answers."""
        self.liveness.forget(node_id)
        return self._gone(node_id, now, unexpected=unexpected, until=math.inf)

    def may_answer(self, node: KnownNode) -> bool:
        """Whether answers of a node are expected."""
        return node.available or node.id in self._missed

    def may_return(self, action: str, node_id: str | None, now: float, *, patient: bool) -> bool:
        """Whether an action that no node offers may be offered again soon: by a node, or the given one, that was lost a
        moment ago and may only be reconnecting. Some reconnect late after an outage, or are started again; only a
        `patient` caller waits that long."""
        sought = self.liveness.sought(now) if patient else self._missed
        return any(self._registry.offered(one, action) for one in (sought if node_id is None else sought & {node_id}))

    def began(self, node_id: str, now: float) -> None:
        """A process asked who is there, maybe in the place of another of that id."""
        if node_id in self._registry.nodes:
            self.liveness.begun[node_id] = now
            self.doubt(now, now, node_id)

    def introduced(self, node_id: str, *, replaced: bool) -> list[Effect]:
        """A node has said what it is. When another process had its id, what was asked before this one began will not be
        answered."""
        self._missed.discard(node_id)
        self.liveness.answered(node_id, introduced=True)
        return self._not_answered(node_id, self.liveness.begun.get(node_id, -math.inf)) if replaced else []

    # Liveness

    def look_after(self, now: float, readers: Collection[str] = ()) -> list[Effect]:
        """Probe the nodes that keep calls or streams waiting, and those that were missed. `readers` are the nodes that
        writers of streams wait for."""
        until = now - NODE_PROBE_AFTER_S
        asked = takewhile(lambda one: one.since <= until, self.pending.values())
        waited_for = {one.node_id for one in asked if one.node_id is not None}.union(readers)
        known = [one for one in waited_for | self._streams.waits_for(until) if one in self._registry.nodes]
        effects: list[Effect] = [self._question(probe, now) for probe in self.liveness.probes(known, now)]
        for node_id in self.liveness.unresponsive(now):
            effects += self._avoid(node_id)
        return effects + self._without_answer(now)

    def _question(self, probe: Probe, now: float) -> Publish:
        """A ping, which is answered at once. A node that may be gone is asked who it is: by that answer it is known
        again, and it may lack the right to receive pings."""
        node_id, reply_id = probe.node_id, probe.reply_id
        version = self._version_for(node_id)
        node = self._registry.nodes.get(node_id)
        if node is None or not node.available or self.liveness.is_unreachable(node_id, now):
            return self._packets.discover(version, node_id, reply_id)
        return self._packets.ping(version, node_id, reply_id, requests=self._doubted_at(node), reply_id=reply_id)

    def _avoid(self, node_id: str) -> list[Effect]:
        """Call a node only when no other offers the action, from now on."""
        node = self._registry.nodes.get(node_id)
        if node is None or not node.available or node_id in self._registry.unresponsive:
            return []
        self._registry.avoid(node_id, avoided=True)
        return [Log(UNRESPONSIVE % node_id)]

    def responds(self, node_id: str) -> list[Effect]:
        """A node that may have been avoided sends again."""
        self.liveness.answered(node_id)
        if node_id not in self._registry.unresponsive:
            return []
        self._registry.avoid(node_id, avoided=False)
        return [Log(f"Node '{node_id}' answers again", logging.INFO)]

    # Lost answers

    def doubt(self, until: float, now: float, node_id: str | None = None) -> None:
        """This node, or the given one, was not connected, so that what was asked until then may have been lost, or its
        answer. Python nodes are asked in the next probe whether they still work at it. JS nodes cannot say: a call with
        a timeout waits for that, one without it for `ANSWER_LOST_S`."""
        cause = f"Node '{node_id}' reconnected or was started again" if node_id else "The connection to NATS was lost"
        self._doubted_until = max(until, self._doubted_until)
        for pending in self._asked_until(until, node_id):
            pending.doubt = now, cause

    def _doubted_at(self, node: KnownNode) -> list[Id] | UnsetType:
        doubted = self._asked_until(self._doubted_until, node.id) if SPOKEN in node.client else ()
        return [one.id for one in doubted if one.doubt][:REQUESTS_ASKED] or UNSET

    def still_in_work(self, node_id: str, requests: Any) -> list[Effect]:
        """A node has said of requests whether it works at them. Those that it does not were lost on either way."""
        effects: list[Effect] = []
        for request_id, in_work in requests.items() if isinstance(requests, dict) else ():
            pending = self.pending.get(request_id)
            if pending is not None and pending.node_id == node_id and pending.doubt:
                if not in_work:
                    effects += self._reject([pending], _lost)
                pending.doubt = None
        return effects

    def _without_answer(self, now: float) -> list[Effect]:
        """A call without a timeout must not wait without end for an answer that may be lost."""
        doubted = (one for one in self._asked_until(self._doubted_until) if one.doubt and not one.timed)
        return self._reject([one for one in doubted if one.doubt and now - one.doubt[0] > ANSWER_LOST_S], _lost)

    # Inside

    def _miss(self, node_id: str, since: float, now: float) -> list[Effect]:
        """What was sent to a node then had no responders, so nothing more is sent there. What was sent before was
        delivered: it is answered yet when the node only reconnects, and comes to nothing when it does not return."""
        changes = self._registry.lose_node(node_id, now, unexpected=True)
        if changes:
            self._missed.add(node_id)
            self.liveness.missed(node_id, since)
        return list(notices(changes))

    def _gone(self, node_id: str, now: float, *, unexpected: bool, until: float) -> list[Effect]:
        self._missed.discard(node_id)
        changes = self._registry.lose_node(node_id, now, unexpected=unexpected)
        return [*notices(changes), *self._not_answered(node_id, until)]

    def _not_answered(self, node_id: str, until: float) -> list[Effect]:
        """What a node was asked, and what it was sending or reading, until then, comes to nothing."""
        rejected = self._reject(self._asked_until(until, node_id), _rejection)
        self._streams.lose(node_id, until=until)
        return [*rejected, ReaderGone(node_id, until)]

    def _reject(self, requests: Iterable[Pending], error: Callable[[Pending], MoleculerError]) -> list[Effect]:
        effects: list[Effect] = []
        for pending in requests:
            self.take(pending.id)
            effects.append(Reject(pending, error(pending)))
        return effects

    def _subject(self, pending: Pending) -> str:
        topics = self._packets.topics
        if pending.node_id is None:
            return topics.balanced_request(pending.action)
        return topics.to_node("REQ", pending.node_id)

    def _asked_until(self, until: float, node_id: str | None = None) -> list[Pending]:
        asked = takewhile(lambda one: one.since <= until, self.pending.values())
        return [one for one in asked if node_id is None or one.node_id == node_id]


def notices(changes: Iterable[Change]) -> Iterator[Effect]:
    return (Notify(event, payload) for event, payload in changes)


def _rejection(pending: Pending) -> MoleculerError:
    return RequestRejectedError({"action": pending.action, "nodeID": pending.node_id})


def _lost(pending: Pending) -> MoleculerError:
    cause = pending.doubt[1] if pending.doubt else ""
    return BrokerDisconnectedError(
        f"{cause} during the call of '{pending.action}', and the call or its answer was lost."
    )
