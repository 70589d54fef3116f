"""The streams that this node sends: what others say of them, and what their readers must still learn."""

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from broker.conversation.effects import Publish
from broker.conversation.requests import publish_denied
from broker.defaults import FORGET_OFFLINE_S, STREAM_PING_AGAIN_S
from broker.errors import MoleculerError, RequestRejectedError
from broker.ids import new_id
from broker.protocol.packets import Ping, Pong, Protocol
from broker.protocol.topics import Topics
from broker.registry.registry import Registry
from broker.streams.flow import Flow
from broker.streams.pace import Pace

logger = logging.getLogger("broker")

PACE = "pace:"
"""Begins the ids of the pings behind chunks."""


class _Owed:
    """Ends of streams whose readers may lack chunks. Sent again and again, until the node answers the ping behind them.
    Another instance of it has no such readers."""

    def __init__(self, instance_id: str | None) -> None:
        self.instance_id = instance_id
        self.ends: list[Publish] = []
        self.ping_id = ""
        self.since = self.due = 0.0
        self.wait_s = STREAM_PING_AGAIN_S


class Writers:
    """`publish` sends a packet, and raises MoleculerError when it cannot."""

    def __init__(
        self, node_id: str, topics: Topics, registry: Registry, publish: Callable[[Publish], Awaitable[None]]
    ) -> None:
        self._node_id = node_id
        self._topics = topics
        self._registry = registry
        self._publish = publish
        self._flows: dict[str, Flow] = {}
        """By the prefix of their marks."""
        self._paces: WeakValueDictionary[str, Pace] = WeakValueDictionary()
        self._owed: dict[str, _Owed] = {}

    def __len__(self) -> int:
        return len(self._flows)

    def open(self, prefix: str, action: str, node_id: str, ver: Protocol, since: float, *, acknowledges: bool) -> Flow:
        """A stream of an action's call or answer to a node begins; `prefix` begins the reply ids of its chunks."""
        pace = self._paces.get(node_id)
        if pace is None:
            pace = Pace(node_id, partial(self._ping, node_id, ver), partial(self.lose, node_id))
            self._paces[node_id] = pace
        node = self._registry.nodes.get(node_id)
        instance_id = None if node is None else node.instance_id
        flow = self._flows[prefix] = Flow(action, pace, instance_id, since, acknowledges=acknowledges)
        return flow

    def close(self, prefix: str) -> None:
        self._flows.pop(prefix, None)

    def waited_for(self, now: float) -> set[str]:
        """The nodes that writers wait for, or that may have lost a part of a stream."""
        late = {node_id for node_id, pace in self._paces.items() if pace.is_late(now)}
        return late.union(flow.node_id for flow in self._flows.values() if flow.waiting)

    async def tick(self, now: float) -> None:
        """Ask nodes how far they have received, and tell readers whose nodes are there that their streams have broken
        off. Call it about once a second, while there is a connection."""
        for pace in list(self._paces.values()):
            await pace.tick(now)
        for node_id, owed in list(self._owed.items()):
            await self._pay(node_id, owed, now)

    # What comes from outside

    def marked(self, reply_id: str, answer: bytes) -> None:
        """An answer came to a chunk."""
        flow = self._flow(reply_id)
        if flow is not None:
            flow.answered(answer)

    def reader_of(self, reply_id: str) -> str | None:
        """The node to which a chunk went; None when it was none, or of a stream that is over."""
        flow = self._flow(reply_id)
        return None if flow is None else flow.node_id

    def pong(self, pong: Pong) -> bool:
        """A ping was answered. Whether it was one of these."""
        if not isinstance(pong.id, str) or not pong.id.startswith(PACE):
            return False
        ping_id = pong.id.removeprefix(PACE)
        owed, pace = self._owed.get(pong.sender), self._paces.get(pong.sender)
        if owed is not None and owed.ping_id == ping_id:
            del self._owed[pong.sender]
        elif pace is not None:
            pace.answered(ping_id)
        return True

    def lose(self, node_id: str, error: Exception, until: float) -> None:
        """The streams to a node that were opened until then may lack chunks."""
        for flow in self._until(node_id, until):
            flow.lose(error)

    def gone(self, node_id: str, until: float) -> None:
        """A node is gone, or another process has its id since then."""
        for flow in self._until(node_id, until):
            flow.lose(RequestRejectedError({"action": flow.action, "nodeID": node_id}))

    def lose_all(self, error: Exception) -> None:
        """The connection is gone."""
        for flow in list(self._flows.values()):
            flow.lose(error)

    def denied(self, subject: str) -> None:
        """The NATS user of this node may not publish to a subject."""
        for pace in list(self._paces.values()):
            if self._topics.to_node("PING", pace.node_id) == subject:
                pace.stop_asking()
        for prefix, flow in list(self._flows.items()):
            if self._topics.to_node("REQ" if prefix.startswith("REQ") else "RES", flow.node_id) == subject:
                flow.stop(publish_denied(subject))

    # What readers must still learn

    def owe(self, flow: Flow, ends: list[Publish]) -> None:
        """A stream broke off, and its reader may lack chunks, or cannot be told now."""
        owed = self._owed.get(flow.node_id)
        if owed is None or owed.instance_id != flow.instance_id:
            owed = self._owed[flow.node_id] = _Owed(flow.instance_id)
        owed.ends += ends
        owed.ping_id, owed.due = new_id(), 0.0

    # Inside

    def _until(self, node_id: str, until: float) -> list[Flow]:
        return [flow for flow in self._flows.values() if flow.node_id == node_id and flow.since <= until]

    def _flow(self, reply_id: str) -> Flow | None:
        return self._flows.get(reply_id.partition(":")[0])

    async def _pay(self, node_id: str, owed: _Owed, now: float) -> None:
        node = self._registry.nodes.get(node_id)
        owed.since = owed.since or now
        replaced = node is not None and owed.instance_id not in (None, node.instance_id)
        if replaced or now - owed.since > FORGET_OFFLINE_S:
            del self._owed[node_id]
        elif now >= owed.due and (node is None or node.available):
            owed.due, owed.wait_s = now + owed.wait_s, owed.wait_s * 2
            for end in owed.ends:
                await self._publish(end)
            await self._ping(node_id, owed.ends[0].packet.ver, owed.ping_id)

    async def _ping(self, node_id: str, ver: Any, ping_id: str) -> None:
        ping = Ping(ver=ver, sender=self._node_id, time=0, id=f"{PACE}{ping_id}")
        try:
            await self._publish(Publish(self._topics.to_node("PING", node_id), ping))
        except MoleculerError as error:
            logger.debug("'%s' was not asked how far it has received: %s", node_id, error)
