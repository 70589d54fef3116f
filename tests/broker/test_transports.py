"""A transporter option becomes a transport, or a clear refusal."""

from typing import Any

import pytest

from broker.errors import BrokerOptionsError
from broker.transports import make_transport
from broker.transports.memory import Hub, MemoryTransport
from broker.transports.nats import NATSTransport


@pytest.mark.parametrize("transporter", [None, ""])
def test_none_means_no_cluster(transporter: str | None) -> None:
    assert make_transport(transporter) is None


def test_a_name_in_memory_is_a_hub_of_this_process() -> None:
    first, second = make_transport("memory://here"), make_transport("memory://here")
    assert isinstance(first, MemoryTransport)
    assert isinstance(second, MemoryTransport)
    assert first.hub is second.hub is Hub.named("here")


@pytest.mark.parametrize(
    "transporter",
    [
        "nats://a:1,nats://b:2",
        "nats://a:1, nats://b:2 ,",
        "nats://u:p,w@a:1,b:2",
        ["nats://a:1", "nats://b:2"],
        ("a:1", "b:2"),
    ],
)
def test_servers_of_nats_as_text_or_list(transporter: Any) -> None:
    transport = make_transport(transporter)
    assert isinstance(transport, NATSTransport)
    assert len(transport._servers) == 2


def test_options_go_to_the_client() -> None:
    transport = make_transport("nats://a:1", {"token": "t"})
    assert isinstance(transport, NATSTransport)
    assert transport._options == {"token": "t"}


def test_a_transport_is_taken_as_it_is() -> None:
    transport = MemoryTransport(Hub())
    assert make_transport(transport) is transport


class Half:
    """A transport that lacks most of what a node calls."""

    def publish(self) -> None: ...


@pytest.mark.parametrize("transporter", [5, {"type": "NATS"}, [5], object(), b"nats://a:1", Half()])
def test_anything_else_is_refused(transporter: Any) -> None:
    with pytest.raises(BrokerOptionsError, match=r"Use 'nats://host:4222', 'memory://name' or None"):
        make_transport(transporter)
