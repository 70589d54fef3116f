"""Internal events about trouble carry what Moleculer documents."""

import pytest

from broker.conversation.notices import not_processed, not_sent, service_not_stopped, transporter_failed
from broker.errors import BrokerDisconnectedError
from broker.protocol.packets import (
    NULL,
    Disconnect,
    Discover,
    Event,
    Heartbeat,
    Info,
    Packet,
    Ping,
    Pong,
    Request,
    Response,
)

ERROR = BrokerDisconnectedError()


@pytest.mark.parametrize(
    ("packet", "broadcast", "kind"),
    [
        (Request(sender="a", id="1", action="x", params=NULL), False, "failedSendRequestPacket"),
        (Event(sender="a", event="x"), False, "failedSendEventPacket"),
        (Response(sender="a", id="1"), False, "failedSendResponsePacket"),
        (Discover(sender="a"), True, "failedNodesDiscovery"),
        (Discover(sender="a"), False, "failedNodeDiscovery"),
        (Info(sender="a"), True, "failedSendInfoPacket"),
        (Ping(sender="a"), False, "failedSendPingPacket"),
        (Pong(sender="a"), False, "failedSendPongPacket"),
        (Heartbeat(sender="a"), True, "failedSendHeartbeatPacket"),
    ],
)
def test_a_packet_that_was_not_sent_is_named(packet: Packet, broadcast: bool, kind: str) -> None:
    payload = {"error": ERROR, "module": "transit", "type": kind}
    assert not_sent(packet, ERROR, broadcast=broadcast) == ("$transit.error", payload)


def test_a_good_bye_that_was_not_sent_is_not_told() -> None:
    assert not_sent(Disconnect(sender="a"), ERROR, broadcast=True) is None


def test_other_trouble_names_its_module() -> None:
    told = [not_processed(ERROR), transporter_failed(ERROR), service_not_stopped(ERROR)]
    assert [(name, payload["module"], payload["type"], payload["error"]) for name, payload in told] == [
        ("$transit.error", "transit", "failedProcessingPacket", ERROR),
        ("$transporter.error", "transporter", "clientError", ERROR),
        ("$broker.error", "broker", "failedServiceDestruction", ERROR),
    ]
