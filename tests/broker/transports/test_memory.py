"""The bus inside one process: named hubs, and what the suite of all transports does not cover."""

import gc

import pytest

from broker.transports.base import Observer
from broker.transports.memory import Hub, MemoryTransport

pytestmark = pytest.mark.anyio


def test_a_name_means_one_hub_for_as_long_as_a_transport_holds_it() -> None:
    hub = Hub.named("here")
    assert Hub.named("here") is hub
    assert Hub.named("there") is not hub
    before = id(hub)
    held = MemoryTransport(hub)
    del hub
    gc.collect()
    assert id(Hub.named("here")) == before
    del held
    gc.collect()
    assert "here" not in Hub._named


async def test_messages_are_delivered_when_publish_returns() -> None:
    transport = MemoryTransport(Hub())
    await transport.connect(Observer(), "test")
    received: list[bytes] = []

    async def on_message(data: bytes, _reply: str) -> None:
        received.append(data)

    await transport.subscribe("a", on_message)
    await transport.publish("a", b"1")
    assert received == [b"1"]


async def test_there_is_no_limit_by_default() -> None:
    transport = MemoryTransport(Hub())
    await transport.connect(Observer(), "test")
    assert transport.max_payload is None
    await transport.publish("a", b"x" * 5_000_000)
