"""The streams that a node sends: what reaches their writers, and what their readers are told late."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import anyio
import pytest

from broker.defaults import FORGET_OFFLINE_S, STREAM_PING_AGAIN_S
from broker.errors import MoleculerError, RequestRejectedError
from broker.protocol.codecs.json import JSONCodec
from broker.protocol.packets import Packet, Ping, Pong, Request, Response
from broker.streams.flow import Fate
from broker.streams.outgoing import OutgoingStreams
from broker.streams.packets import CONTINUE
from broker.streams.source import Source
from broker.streams.writer import StreamWriter
from tests.support.transits import info, make_transit, meet

pytestmark = pytest.mark.anyio
BOTH = ["MOL.REQ.js-1", "MOL.PING.js-1"]


class Node:
    """The streams that "py-1" sends, which knows "js-1"."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Packet]] = []
        self.transit = make_transit()
        meet(self.transit, "js-1")
        self.writers = OutgoingStreams(
            "py-1", self.transit.topics, self.transit.registry, JSONCodec(), self, self._publish, self
        )
        self.end = Response(ver="5", sender="py-1", id="1", sequence=1, success=False)

    max_payload = None
    has_inbox = True

    def open(self, id: str, node_id: str = "js-1") -> StreamWriter:
        request = Request(ver="5", sender="py-1", id=id, action="a.b")
        return self.writers.along_with(request, node_id, Source([]), has_params=False)

    def owe(self, node_id: str = "js-1") -> None:
        self.writers.owe(self.open("0", node_id), [self.end])

    async def _publish(self, subject: str, packet: Packet, _reply_id: str | None) -> None:
        self.sent.append((subject, packet))

    def start_handler(self, work: Coroutine[Any, Any, None]) -> bool:
        raise NotImplementedError

    def start_in_background(self, work: Coroutine[Any, Any, None]) -> None:
        raise NotImplementedError

    async def tick(self, now: float) -> list[str]:
        """The subjects of what is sent."""
        self.sent.clear()
        await self.writers.tick(now)
        return [subject for subject, _ in self.sent]

    def pong(self) -> bool:
        """The answer to the last ping."""
        ping = self.sent[-1][1]
        assert isinstance(ping, Ping)
        return self.writers.pong(Pong(ver="5", sender="js-1", id=ping.id))


@pytest.fixture
def node() -> Node:
    return Node()


async def test_an_end_is_told_until_the_node_has_answered_the_ping_behind_it(node: Node) -> None:
    node.owe()
    assert await node.tick(1.0) == BOTH
    assert await node.tick(1.1) == []
    node.owe()
    assert await node.tick(1.2) == ["MOL.REQ.js-1", *BOTH], "the ping answers for all"
    assert await node.tick(2.0 + STREAM_PING_AGAIN_S * 2) == ["MOL.REQ.js-1", *BOTH]
    assert node.pong()
    assert await node.tick(100.0) == []
    assert not node.writers._owed


async def test_an_end_waits_for_its_node_to_return(node: Node) -> None:
    node.transit.registry.lose_node("js-1", 1.0, unexpected=True)
    node.owe()
    assert await node.tick(2.0) == []
    node.transit.receive("INFO", info("js-1"), 50.0)
    assert await node.tick(51.0) == BOTH


async def test_an_end_is_not_told_to_another_process_and_not_kept_for_long(node: Node) -> None:
    node.owe()
    node.transit.receive("INFO", info("js-1", instance="another"), 1.0)
    node.owe("unknown")
    assert await node.tick(2.0) == ["MOL.REQ.unknown", "MOL.PING.unknown"]
    assert await node.tick(3.0 + FORGET_OFFLINE_S) == []
    assert not node.writers._owed


async def test_what_comes_from_outside_reaches_the_streams_that_it_is_about(node: Node) -> None:
    one, other = node.open("1"), node.open("2", "js-2")
    between = asyncio.get_running_loop().time()
    await anyio.sleep(0.001)  # the clock goes on
    late = node.open("3")
    assert one.route.pace is late.route.pace is not other.route.pace
    one.mark(1)
    node.writers.marked("REQ-1:1", CONTINUE)
    assert one._ahead == 3
    assert node.writers.reader_of("REQ-2:7") == "js-2"
    assert node.writers.reader_of("unknown") is None
    node.writers.gone("js-1", between)
    assert [flow.fate for flow in (one, other, late)] == [Fate.LOST, Fate.OPEN, Fate.OPEN]
    assert isinstance(one.error, RequestRejectedError)
    assert one.error.data == {"action": "a.b", "nodeID": "js-1"}
    node.writers.denied("MOL.REQ.js-2")
    assert isinstance(other.error, MoleculerError)
    assert other.error.data == {"subject": "MOL.REQ.js-2"}
    for writer in (one, other, late):
        node.writers.close(writer)
    assert len(node.writers) == 0
