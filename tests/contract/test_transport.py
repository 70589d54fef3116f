"""The promises of a transport, over memory and over NATS."""

from collections.abc import AsyncIterator, Coroutine
from typing import Any

import anyio
import pytest

from broker.errors import BrokerDisconnectedError, PayloadTooLargeError
from broker.transports import make_transport
from broker.transports.base import Observer, Transport
from broker.transports.memory import Hub, MemoryTransport
from tests.conftest import NatsServerFactory
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

LIMIT = 4096


class Bus:
    """Connections to one bus, and the events reported to them."""

    def __init__(self, make: Any) -> None:
        self._make = make
        self.open: list[Transport] = []
        self.unanswered: list[str] = []

    def transport(self) -> Transport:
        transport: Transport = self._make()
        self.open.append(transport)
        return transport

    async def connect(self, **observer: Any) -> Transport:
        transport = self.transport()
        await transport.connect(Observer(no_responders=self._no_responders, **observer), "test")
        return transport

    async def _no_responders(self, reply_id: str) -> None:
        self.unanswered.append(reply_id)


@pytest.fixture(params=["memory", "nats"])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    if request.param == "memory":
        hub = Hub(LIMIT)
        bus = Bus(lambda: MemoryTransport(hub))
    else:
        factory: NatsServerFactory = request.getfixturevalue("make_nats_server")
        url = factory(max_payload=LIMIT).url
        bus = Bus(lambda: make_transport(url))
    yield bus
    for transport in bus.open:
        await transport.close()


class Received(list[str]):
    """A subscription's messages, as text."""

    async def __call__(self, data: bytes, _reply: str) -> None:
        self.append(data.decode())


async def test_every_subscriber_without_a_queue_receives_each_message_once(bus: Bus) -> None:
    sender, *receivers = [await bus.connect() for _ in range(4)]
    received = [Received() for _ in receivers]
    for receiver, messages in zip(receivers, received, strict=True):
        await receiver.subscribe("a.b", messages)
        await receiver.flush()
    for number in range(20):
        await sender.publish("a.b", str(number).encode())
    for messages in received:
        await eventually(lambda messages=messages: len(messages) >= 20)  # type: ignore[misc]  # a lambda's default
    assert all(messages == [str(number) for number in range(20)] for messages in received)


async def test_a_queue_group_receives_each_message_once_and_shares_them(bus: Bus) -> None:
    sender, *receivers = [await bus.connect() for _ in range(3)]
    alone, received = Received(), [Received() for _ in receivers]
    for receiver, messages in zip(receivers, received, strict=True):
        await receiver.subscribe("a.b", messages, "group")
        await receiver.flush()
    await sender.subscribe("a.b", alone, "another-group")
    await sender.flush()
    for number in range(100):
        await sender.publish("a.b", str(number).encode())
    await eventually(lambda: sum(map(len, received)) >= 100 and len(alone) >= 100)
    assert sorted(received[0] + received[1], key=int) == [str(number) for number in range(100)]
    assert all(received), "each member got some"
    assert alone == [str(number) for number in range(100)]


async def test_the_order_of_a_subject_is_kept(bus: Bus) -> None:
    sender, receiver = await bus.connect(), await bus.connect()
    received = Received()
    await receiver.subscribe("a.b", received)
    await receiver.flush()
    for number in range(2000):
        await sender.publish("a.b", str(number).encode())
    await eventually(lambda: len(received) >= 2000)
    assert received == [str(number) for number in range(2000)]


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("a.*", ["a.b", "a.c"], ["a", "a.b.c", "b.b"]),
        ("a.>", ["a.b", "a.b.c"], ["a", "b.a"]),
        (">", ["a", "a.b.c"], []),
        ("*.b.*", ["a.b.c"], ["a.b", "a.c.c", "a.b.c.d"]),
        ("a.b", ["a.b"], ["a.B", "a", "a.b.c", "a.*b"]),
    ],
)
async def test_wildcards_match_tokens(bus: Bus, pattern: str, matching: list[str], others: list[str]) -> None:
    sender, receiver = await bus.connect(), await bus.connect()
    received = Received()
    await receiver.subscribe(pattern, received)
    await receiver.subscribe("the.end", received)
    await receiver.flush()
    for subject in [*others, *matching]:
        await sender.publish(subject, subject.encode())
    await sender.publish("the.end", b"end")
    await eventually(lambda: "end" in received)
    expected = [*matching, "the.end"] if pattern == ">" else matching
    assert [text for text in received if text != "end"] == matching
    assert received.count("end") == len(expected) - len(matching) + 1


async def test_a_message_reaches_its_own_sender_too(bus: Bus) -> None:
    transport = await bus.connect()
    received = Received()
    await transport.subscribe("a", received)
    await transport.publish("a", b"mine")
    await eventually(lambda: received == ["mine"])


async def test_nothing_arrives_after_a_cancel_and_cancelling_twice_is_harmless(bus: Bus) -> None:
    sender, receiver = await bus.connect(), await bus.connect()
    cancelled, kept = Received(), Received()
    subscription = await receiver.subscribe("a", cancelled)
    await receiver.subscribe("a", kept)
    await receiver.flush()
    await sender.publish("a", b"1")
    await eventually(lambda: kept == ["1"] and cancelled == ["1"])
    await subscription.cancel()
    await subscription.cancel()
    await receiver.flush()
    await sender.publish("a", b"2")
    await eventually(lambda: kept == ["1", "2"])
    assert cancelled == ["1"]


async def test_only_a_subject_without_a_subscription_is_reported(bus: Bus) -> None:
    sender, receiver = await bus.connect(), await bus.connect()
    received = Received()
    await receiver.subscribe("a.*", received)
    await receiver.flush()
    await sender.publish("a.b", b"x", "received")
    await sender.publish("unused", b"x")
    await sender.publish("unused", b"x", "unanswered:1")
    await sender.publish("a.b", b"x", "received-too")
    await sender.publish("unused", b"x", "unanswered-2")
    await eventually(lambda: len(bus.unanswered) >= 2 and len(received) == 2)
    assert bus.unanswered == ["unanswered:1", "unanswered-2"]


async def test_has_subscribers_reports_whether_a_subject_has_a_subscription(bus: Bus) -> None:
    sender, receiver = await bus.connect(), await bus.connect()
    received = Received()
    subscription = await receiver.subscribe("a.*", received)
    await receiver.flush()
    assert await sender.has_subscribers("a.b", b"x") is True
    assert await sender.has_subscribers("b", b"x") is False
    await eventually(lambda: received == ["x"])
    await subscription.cancel()
    await receiver.flush()
    assert await sender.has_subscribers("a.b", b"x") is False


async def test_closing_a_connection_ends_its_subscriptions(bus: Bus) -> None:
    sender, receiver = await bus.connect(), await bus.connect()
    await receiver.subscribe("a", Received())
    await receiver.flush()
    await receiver.close()

    async def gone() -> bool:
        return not await sender.has_subscribers("a", b"x")

    with anyio.fail_after(30):
        while not await gone():
            await anyio.lowlevel.checkpoint()


async def test_c86_a_message_above_the_limit_is_refused_with_size_and_limit(bus: Bus) -> None:
    transport = await bus.connect()
    received = Received()
    await transport.subscribe("a", received)
    assert transport.max_payload == LIMIT
    for send in (transport.publish, transport.has_subscribers):
        with pytest.raises(PayloadTooLargeError) as caught:
            await send("a", b"x" * (LIMIT + 1))
        assert caught.value.data == {"size": LIMIT + 1, "limit": LIMIT}
        assert str(LIMIT + 1) in str(caught.value)
        assert "max_payload" in str(caught.value)
    await transport.publish("a", b"x" * LIMIT)
    await eventually(lambda: received == ["x" * LIMIT])


async def test_closing_twice_or_without_a_connection_is_harmless(bus: Bus) -> None:
    transport = await bus.connect()
    assert transport.connected
    await transport.close()
    assert not transport.connected
    await transport.close()
    await bus.transport().close()


async def test_every_operation_without_a_connection_is_a_clear_error(bus: Bus) -> None:
    closed = await bus.connect()
    await closed.close()
    for transport in (closed, bus.transport()):
        uses: list[Coroutine[Any, Any, Any]] = [
            transport.publish("a", b"x"),
            transport.subscribe("a", Received()),
            transport.has_subscribers("a", b"x"),
            transport.flush(),
        ]
        for use in uses:
            with pytest.raises(BrokerDisconnectedError):
                await use


async def test_messages_published_before_the_close_arrive(bus: Bus) -> None:
    sender, receiver = await bus.connect(), await bus.connect()
    received = Received()
    await receiver.subscribe("a", received)
    await receiver.flush()
    for number in range(500):
        await sender.publish("a", str(number).encode())
    await sender.close()
    await eventually(lambda: len(received) == 500)


async def test_cancelling_a_publish_leaves_the_connection_usable(bus: Bus) -> None:
    transport = await bus.connect()
    received = Received()
    await transport.subscribe("a", received)
    for _ in range(20):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await transport.publish("a", b"perhaps")
    await transport.publish("a", b"surely")
    await eventually(lambda: "surely" in received)


@pytest.mark.parametrize("subject", ["", "a b", "a\r\nPUB b 0\r\n\r\n", "a\t"])
async def test_a_subject_that_nats_cannot_carry_leaves_the_connection_usable(bus: Bus, subject: str) -> None:
    transport = await bus.connect()
    received = Received()
    await transport.subscribe("b", received)
    try:
        await transport.publish(subject, b"x")
    except Exception as error:
        assert type(error).__module__.startswith("broker.")  # noqa: PT017 - whether it is refused at all is left open
    await transport.publish("b", b"still here")
    await eventually(lambda: received == ["still here"])
