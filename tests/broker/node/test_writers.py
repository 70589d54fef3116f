"""The streams that a node sends: what reaches their writers, and what their readers are told late."""

import pytest

from broker.conversation.effects import Publish
from broker.defaults import FORGET_OFFLINE_S, STREAM_PING_AGAIN_S
from broker.errors import MoleculerError, RequestRejectedError
from broker.node.writers import Writers
from broker.protocol.packets import Ping, Pong, Response
from broker.streams.ordering import CONTINUE
from tests.support.transits import info, make_transit, meet

pytestmark = pytest.mark.anyio
BOTH = ["MOL.RES.js-1", "MOL.PING.js-1"]


class Node:
    """The writers of "py-1", which knows "js-1"."""

    def __init__(self) -> None:
        self.sent: list[Publish] = []
        self.transit = make_transit()
        meet(self.transit, "js-1")
        self.writers = Writers("py-1", self.transit.topics, self.transit.registry, self._publish)
        self.flow = self.writers.open("RES-0", "a.b", "js-1", "5", 0.0, acknowledges=False)
        self.end = Publish("MOL.RES.js-1", Response(ver="5", sender="py-1", id="1", sequence=1, success=False))

    async def _publish(self, publish: Publish) -> None:
        self.sent.append(publish)

    async def tick(self, now: float) -> list[str]:
        """The subjects of what is sent."""
        self.sent.clear()
        await self.writers.tick(now)
        return [publish.subject for publish in self.sent]

    def pong(self) -> bool:
        """The answer to the last ping."""
        ping = self.sent[-1].packet
        assert isinstance(ping, Ping)
        return self.writers.pong(Pong(ver="5", sender="js-1", id=ping.id))


@pytest.fixture
def node() -> Node:
    return Node()


async def test_an_end_is_told_until_the_node_has_answered_the_ping_behind_it(node: Node) -> None:
    node.writers.owe(node.flow, [node.end])
    assert await node.tick(1.0) == BOTH
    assert await node.tick(1.1) == []
    node.writers.owe(node.flow, [node.end])
    assert await node.tick(1.2) == ["MOL.RES.js-1", *BOTH], "the ping answers for all"
    assert await node.tick(2.0 + STREAM_PING_AGAIN_S * 2) == ["MOL.RES.js-1", *BOTH]
    assert node.pong()
    assert await node.tick(100.0) == []
    assert not node.writers._owed


async def test_an_end_waits_for_its_node_to_return(node: Node) -> None:
    node.transit.registry.lose_node("js-1", 1.0, unexpected=True)
    node.writers.owe(node.flow, [node.end])
    assert await node.tick(2.0) == []
    node.transit.receive("INFO", info("js-1"), 50.0)
    assert await node.tick(51.0) == BOTH


async def test_an_end_is_not_told_to_another_process_and_not_kept_for_long(node: Node) -> None:
    node.writers.owe(node.flow, [node.end])
    node.transit.receive("INFO", info("js-1", instance="another"), 1.0)
    unknown = node.writers.open("RES-1", "a.b", "unknown", "5", 0.0, acknowledges=False)
    node.writers.owe(unknown, [node.end])
    assert await node.tick(2.0) == ["MOL.RES.js-1", "MOL.PING.unknown"]
    assert await node.tick(3.0 + FORGET_OFFLINE_S) == []
    assert not node.writers._owed


async def test_what_comes_from_outside_reaches_the_streams_that_it_is_about(node: Node) -> None:
    node.writers.close("RES-0")
    one = node.writers.open("RES-1", "a.b", "js-1", "5", 1.0, acknowledges=True)
    other = node.writers.open("RES-2", "a.b", "js-2", "5", 1.0, acknowledges=True)
    late = node.writers.open("RES-3", "a.b", "js-1", "5", 3.0, acknowledges=True)
    assert one.pace is late.pace is not other.pace
    one.mark(1)
    node.writers.marked("RES-1:1", CONTINUE)
    assert one._open_marks == 0
    assert node.writers.reader_of("RES-2:7") == "js-2"
    assert node.writers.reader_of("unknown") is None
    node.writers.gone("js-1", 2.0)
    assert [flow.lost for flow in (one, other, late)] == [True, False, False]
    assert isinstance(one.error, RequestRejectedError)
    assert one.error.data == {"action": "a.b", "nodeID": "js-1"}
    node.writers.denied("MOL.RES.js-2")
    assert isinstance(other.error, MoleculerError)
    assert other.error.data == {"subject": "MOL.RES.js-2"}
    for prefix in ("RES-1", "RES-2", "RES-3"):
        node.writers.close(prefix)
    assert len(node.writers) == 0
