"""Whether the nodes that keep calls or streams waiting are still alive (moleculer protocol §4.3).

JS nodes notice a killed peer by its missing heartbeats, after 30 s and more. Two things are known sooner:

- The NATS server answers "no responders" to what is published to a node without subscriptions. A node that keeps
  something waiting gets a probe twice a second, and at each tick while the server refuses them. It counts as gone when
  the server refuses every probe for longer than a live node needs to reconnect: longest when NATS servers come and go.
- A live node answers a probe within milliseconds. One that is still connected and answers none may be frozen, or its
  event loop blocked. It is not gone, and may answer yet, but is called only when no other node offers the action.

A request without responders shows the same as a probe. Nothing more is sent to such a node, but it is probed until it
introduces itself again: JS nodes announce their return only by their next heartbeat.

A process that takes the place of another under its id sends DISCOVER before all else (§4.1): what was sent to that id
before will not be answered.
"""

import math
from collections.abc import Collection
from typing import NamedTuple

from msgspec import Struct

from broker.defaults import (
    NODE_PROBE_INTERVAL_S,
    NODE_RECONNECT_S,
    NODE_SOUGHT_S,
    NODE_UNREACHABLE_S,
    NODE_UNRESPONSIVE_S,
)

PROBE = "probe:"
"""Begins the reply ids of probes, and the ids of those that are pings."""


class Probe(NamedTuple):
    """A question to a node, the first one has number 1, and the monotonic time at which it goes out."""

    node_id: str
    number: int
    sent: float

    @property
    def reply_id(self) -> str:
        return f"{PROBE}{self.number}:{self.sent!r}:{self.node_id}"

    @staticmethod
    def of(reply_id: str) -> "Probe":
        number, sent, node_id = reply_id.removeprefix(PROBE).split(":", 2)
        return Probe(node_id, int(number), float(sent))


class _Watched(Struct):
    probes: int = 0
    sent: float = -math.inf
    unanswered_since: float = math.inf
    refused: int = -1
    """The number of the last probe without responders, and when it and the first of its unbroken run were sent."""
    refused_at: float = -math.inf
    refused_since: float = -math.inf
    sought_until: float = -math.inf

    def is_unreachable(self, now: float) -> bool:
        """By the last answers of the server, which may be about other probes than the last."""
        return now - self.refused_at < NODE_UNREACHABLE_S

    def interval_s(self, now: float) -> float:
        undecided = self.is_unreachable(now) and now - self.refused_since <= NODE_RECONNECT_S
        return 0.0 if undecided else NODE_PROBE_INTERVAL_S

    def is_wanted(self, now: float) -> bool:
        """Whether probes go on although nothing waits for the node."""
        return 0 <= now - self.unanswered_since < NODE_UNRESPONSIVE_S or now < self.sought_until


class Liveness:
    """No I/O and no clock: `now` is a monotonic time in seconds."""

    def __init__(self) -> None:
        self.begun: dict[str, float] = {}
        """When the present process of a node that was known before sent DISCOVER to all."""
        self._watched: dict[str, _Watched] = {}
        self._moved = -math.inf

    def probes(self, node_ids: Collection[str], now: float) -> list[Probe]:
        """The probes to send now, to nodes that are waited for or that are missed. Others are no longer watched."""
        wanted = dict.fromkeys([*node_ids, *(one for one, watched in self._watched.items() if watched.is_wanted(now))])
        self._watched = {node_id: self._watched.get(node_id) or _Watched() for node_id in wanted}
        due = []
        for node_id, watched in self._watched.items():
            if now - watched.sent >= watched.interval_s(now):
                watched.probes += 1
                watched.sent, watched.unanswered_since = now, min(now, watched.unanswered_since)
                due.append(Probe(node_id, watched.probes, now))
        return due

    def refused(self, probe: Probe) -> bool:
        """The server found no responders for a probe. Whether the node now counts as gone.

        The server answers in order, so a gap in the numbers is a probe that was delivered. When its answer arrives does
        not matter, as this process may have been busy.
        """
        watched = self._watched.get(probe.node_id)
        if watched is None:
            return False
        if probe.number != watched.refused + 1:
            watched.refused_since = probe.sent
        watched.refused, watched.refused_at = probe.number, probe.sent
        if probe.sent - watched.refused_since < NODE_UNREACHABLE_S or probe.sent - self._moved < NODE_RECONNECT_S:
            return False
        self.begun.pop(probe.node_id, None)
        watched.sought_until = max(watched.sought_until, watched.refused_since + NODE_SOUGHT_S)
        return True

    def is_unreachable(self, node_id: str, now: float) -> bool:
        """Whether the server has just refused a probe to a node."""
        return node_id in self._watched and self._watched[node_id].is_unreachable(now)

    def missed(self, node_id: str, since: float) -> None:
        """What was sent to a node then had no responders: it is probed from now on, whether or not it is waited for."""
        watched = self._watched.setdefault(node_id, _Watched())
        if not watched.probes:  # else the next probe shows the same
            watched.refused, watched.refused_at, watched.refused_since = 0, since, since
        watched.sought_until = since + NODE_SOUGHT_S

    def sought(self, now: float) -> set[str]:
        """The nodes that were missed, and may return."""
        return {node_id for node_id, watched in self._watched.items() if now < watched.sought_until}

    def answered(self, node_id: str, *, introduced: bool = False) -> None:
        """The node has sent something, or has introduced itself."""
        watched = self._watched.get(node_id)
        if watched is not None:
            watched.unanswered_since = math.inf
            if introduced:
                watched.sought_until = watched.refused_at = -math.inf

    def unresponsive(self, now: float) -> list[str]:
        """The watched nodes that have answered nothing for long."""
        return [one for one, watched in self._watched.items() if now - watched.unanswered_since >= NODE_UNRESPONSIVE_S]

    def moved(self, now: float) -> None:
        """NATS servers came or went, so that live nodes may reconnect at this moment."""
        self._moved = now

    def resume(self, now: float) -> None:
        """This node could not receive until now: it missed answers, and its peers may be in the same trouble."""
        self._moved = now
        for watched in self._watched.values():
            if watched.unanswered_since < now:
                watched.unanswered_since = now

    def forget(self, node_id: str) -> None:
        self._watched.pop(node_id, None)
        self.begun.pop(node_id, None)
