"""What could not be sent is reported in the words of Moleculer JS (protocol §7.4)."""

from typing import Any

import pytest

from broker.errors import BrokerDisconnectedError
from broker.node.effects import Effects
from broker.protocol.codecs.json import JSONCodec
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
from tests.support.transits import make_transit


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
        (Disconnect(sender="a"), True, None),
    ],
)
def test_a_packet_that_was_not_sent_is_named_but_for_a_good_bye(
    packet: Packet, broadcast: bool, kind: str | None
) -> None:
    notices: list[tuple[str, dict[str, Any]]] = []
    made: Any = Effects
    effects = made("a", None, JSONCodec(), make_transit(), None, lambda *notice: notices.append(notice), None, None)
    error = BrokerDisconnectedError()
    effects.note_failure(packet, error, broadcast=broadcast)
    assert notices == ([("$transit.error", {"error": error, "module": "transit", "type": kind})] if kind else [])
