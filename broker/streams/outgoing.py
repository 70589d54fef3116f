"""The streams that this node sends, and what comes from outside to their writers."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol
from weakref import WeakValueDictionary

from broker.errors import MoleculerError, RequestRejectedError, publish_denied
from broker.protocol.codecs.json import Codec
from broker.protocol.packets import PROTOCOLS, Command, Packet, Ping, Pong, Request
from broker.protocol.topics import Topics
from broker.registry.registry import Registry
from broker.streams.flow import Fate, Flow, Pace

PACE = "pace:"
"""Begins the ids of the pings behind chunks."""


class Wire(Protocol):
    """What is needed of the transport."""

    @property
    def max_payload(self) -> int | None: ...

    @property
    def has_inbox(self) -> bool: ...


class Tasks(Protocol):
    """Starts tasks of a node."""

    def start_handler(self, work: Coroutine[Any, Any, None]) -> bool: ...

    def start_in_background(self, work: Coroutine[Any, Any, None]) -> None: ...


@dataclass(eq=False)
class OutgoingStreams:
    """All of a node."""

    node_id: str
    topics: Topics
    registry: Registry
    codec: Codec
    wire: Wire | None
    publish: Callable[[str, Packet, str | None], Awaitable[None]]
    """Sends a packet to a subject, perhaps with a reply id, or raises MoleculerError."""
    tasks: Tasks
    _flows: dict[str, Flow] = field(default_factory=dict)
    _paces: WeakValueDictionary[str, Pace] = field(default_factory=WeakValueDictionary)

    def __len__(self) -> int:
        return len(self._flows)

    def open(self, command: Command, request: Request, node_id: str, *, marks: bool) -> Flow:
        """A stream begins. `marks`: its reader can answer them."""
        pace = self._paces.get(node_id)
        if pace is None:
            ver = request.ver if request.ver in PROTOCOLS else PROTOCOLS[0]
            pace = Pace(node_id, partial(self._ping, node_id, ver), partial(self.lose, node_id))
            self._paces[node_id] = pace
        node = self.registry.nodes.get(node_id)
        key = f"{command}-{request.id}"
        flow = self._flows[key] = Flow(
            request.action,
            self.topics.to_node(command, node_id),
            key,
            pace,
            None if node is None else node.instance_id,
            asyncio.get_running_loop().time(),
            acknowledges=marks and self.wire is not None and self.wire.has_inbox,
        )
        return flow

    def close(self, flow: Flow) -> None:
        """A stream is over."""
        if self._flows.get(flow.key) is flow:
            del self._flows[flow.key]

    def marked(self, reply_id: str, answer: bytes) -> None:
        """An answer came to a chunk."""
        flow = self._flow(reply_id)
        if flow is not None:
            flow.mark_answered(answer)

    def reader_of(self, reply_id: str) -> str | None:
        """The node to which a chunk went; None when it was none, or of a stream that is over."""
        flow = self._flow(reply_id)
        return None if flow is None else flow.pace.node_id

    def pong(self, pong: Pong) -> bool:
        """A ping was answered. Whether it was one of these."""
        if not isinstance(pong.id, str) or not pong.id.startswith(PACE):
            return False
        pace = self._paces.get(pong.sender)
        if pace is not None:
            pace.answered(pong.id.removeprefix(PACE))
        return True

    def lose(self, node_id: str | None, error: Exception | None = None, until: float = math.inf) -> None:
        """The streams to a node (None: to all) that were opened until then may lack chunks."""
        for flow in list(self._flows.values()):
            reader = flow.pace.node_id
            if node_id in (None, reader) and flow.since <= until:
                flow.stop(Fate.LOST, error or RequestRejectedError({"action": flow.action, "nodeID": reader}))

    def gone(self, node_id: str | None, error: Exception | None = None, until: float = math.inf) -> None:
        """A node is gone, or another process has its id since then; with None, all are out of reach."""
        self.lose(node_id, error, until)
        for pace in list(self._paces.values()):
            if node_id in (None, pace.node_id):
                pace.forget()

    def denied(self, subject: str) -> None:
        """The NATS user of this node may not publish to a subject."""
        for pace in list(self._paces.values()):
            if self.topics.to_node("PING", pace.node_id) == subject:
                pace.stop_asking()
        for flow in list(self._flows.values()):
            if flow.subject == subject:
                flow.stop(Fate.STOPPED, publish_denied(subject))

    def waited_for(self, now: float) -> set[str]:
        """The nodes that writers wait for, or that may have lost a part of a stream."""
        late = {node_id for node_id, pace in self._paces.items() if pace.is_late(now)}
        return late.union(flow.pace.node_id for flow in self._flows.values() if flow.waiting)

    async def tick(self, now: float) -> None:
        """Ask nodes how far they have received. Call it about once a second, while there is a connection."""
        for pace in list(self._paces.values()):
            await pace.tick(now)

    def _flow(self, reply_id: str) -> Flow | None:
        return self._flows.get(reply_id.partition(":")[0])

    async def _ping(self, node_id: str, ver: Any, ping_id: str) -> None:
        ping = Ping(ver=ver, sender=self.node_id, time=0, id=f"{PACE}{ping_id}")
        with suppress(MoleculerError):
            await self.publish(self.topics.to_node("PING", node_id), ping, None)
