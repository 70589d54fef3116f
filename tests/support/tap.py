"""All packets of a namespace, received by a NATS client that is not a node.

    async with open_tap(nats_url, namespace) as tap:
        mark = await tap.mark()
        await js.call("pymath.add", {"a": 1})
        await tap.catch_up()
        (request,) = tap.find("REQ.py", after=mark)
        assert len(tap.find("RES.js", id=request["id"])) == 1

It can also send packets like a raw peer: `publish`, and `ask` for a request with its answer.
"""

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import anyio
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from tests.support.waiting import eventually

__all__ = ["Seen", "Tap", "open_tap"]
CATCH_UP = "TAP."
DEADLINE_S = 30


@dataclass(frozen=True)
class Seen:
    """One message: the subject without the prefix, the packet, and its bytes."""

    topic: str
    packet: dict[str, Any]
    data: bytes


class Tap:
    """Made by `open_tap`."""

    def __init__(self, client: Client, namespace: str) -> None:
        self.seen: list[Seen] = []
        self._client = client
        self._prefix = f"MOL-{namespace}" if namespace else "MOL"
        self._questions = 0
        self._catching_up: dict[str, anyio.Event] = {}

    async def listen(self, topic: str) -> None:
        await self._client.subscribe(f"{self._prefix}.{topic}", cb=self._take)
        await self._client.flush()

    async def catch_up(self) -> None:
        """Returns when every packet that any node has received so far is here: the server saw those before this one."""
        caught_up = anyio.Event()
        topic = f"{CATCH_UP}{id(caught_up)}"
        self._catching_up[topic] = caught_up
        await self.publish(topic, b"")
        with anyio.fail_after(DEADLINE_S):
            await caught_up.wait()

    async def mark(self) -> int:
        """The present position, for `after`: only later packets count."""
        await self.catch_up()
        return len(self.seen)

    def find(self, topic: str, *, after: int = 0, **fields: Any) -> list[dict[str, Any]]:
        """Packets on a subject (`REQ.py`; one that ends with `.` is a prefix) with these fields."""
        return [
            seen.packet
            for seen in self.seen[after:]
            if (seen.topic == topic or (topic.endswith(".") and seen.topic.startswith(topic)))
            and all(seen.packet.get(name) == value for name, value in fields.items())
        ]

    def topics(self, *, after: int = 0, **fields: Any) -> list[str]:
        """The subjects of packets with these fields, in the order of their arrival."""
        return [
            seen.topic
            for seen in self.seen[after:]
            if all(seen.packet.get(name) == value for name, value in fields.items())
        ]

    async def wait_for(self, topic: str, *, after: int = 0, **fields: Any) -> dict[str, Any]:
        """Wait for the first such packet."""
        await eventually(
            lambda: self.find(topic, after=after, **fields),
            f"a packet on {topic} with {fields}; seen: {[seen.topic for seen in self.seen[after:]][-20:]}",
        )
        return self.find(topic, after=after, **fields)[0]

    async def publish(self, topic: str, packet: dict[str, Any] | bytes) -> None:
        data = packet if isinstance(packet, bytes) else json.dumps(packet).encode()
        await self._client.publish(f"{self._prefix}.{topic}", data)
        await self._client.flush()

    async def ask(self, node_id: str, action: str, *, ver: str, sender: str = "tap", **fields: Any) -> dict[str, Any]:
        """Sends a request from a node that is unknown to its receiver; returns the answer."""
        self._questions += 1
        request_id = fields.pop("id", f"{sender}-{self._questions}")
        mark = await self.mark()
        packet = {"ver": ver, "sender": sender, "id": request_id, "action": action, **fields}
        await self.publish(f"REQ.{node_id}", packet)
        return await self.wait_for(f"RES.{sender}", after=mark, id=request_id)

    async def settle(self, node_id: str, *, ver: str) -> None:
        """Returns when the node has handled all packets sent to it, and all its packets so far are here."""
        self._questions += 1
        ping_id = f"settle-{self._questions}"
        await self.publish(f"PING.{node_id}", {"ver": ver, "sender": "tap", "id": ping_id, "time": 1})
        await self.wait_for("PONG.tap", id=ping_id)

    async def _take(self, message: Msg) -> None:
        topic = message.subject.removeprefix(self._prefix + ".")
        if topic.startswith(CATCH_UP):
            if topic in self._catching_up:  # a message of this tap, not of another one
                self._catching_up.pop(topic).set()
            return
        if topic.startswith("REPLY."):  # acknowledgements of Python nodes, which are not packets
            return
        try:
            packet = json.loads(message.data)
        except ValueError:
            packet = None
        self.seen.append(Seen(topic, packet if isinstance(packet, dict) else {}, message.data))


@contextlib.asynccontextmanager
async def open_tap(nats_url: str, namespace: str, topic: str = ">") -> AsyncIterator[Tap]:
    """Subscribed until the end of the block. With all topics, NATS finds a receiver for every request of a node."""
    client = await nats.connect(nats_url)
    try:
        tap = Tap(client, namespace)
        await tap.listen(topic)
        yield tap
    finally:
        await client.close()
