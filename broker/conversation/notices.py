"""Internal events that tell of trouble, in the words of Moleculer JS (moleculer protocol §7.4)."""

from typing import Any

from broker.protocol.packets import Discover, Event, Heartbeat, Info, Packet, Ping, Pong, Request, Response

Notice = tuple[str, dict[str, Any]]
"""The name and the payload of an internal event."""

_FAILED_SEND: dict[type[Packet], str] = {
    Request: "failedSendRequestPacket",
    Event: "failedSendEventPacket",
    Response: "failedSendResponsePacket",
    Info: "failedSendInfoPacket",
    Ping: "failedSendPingPacket",
    Pong: "failedSendPongPacket",
    Heartbeat: "failedSendHeartbeatPacket",
}


def not_sent(packet: Packet, error: Exception, *, broadcast: bool) -> Notice | None:
    """A packet could not be sent; None for a good-bye, which nobody reports."""
    if isinstance(packet, Discover):
        kind: str | None = "failedNodesDiscovery" if broadcast else "failedNodeDiscovery"
    else:
        kind = _FAILED_SEND.get(type(packet))
    return ("$transit.error", {"error": error, "module": "transit", "type": kind}) if kind else None


def not_processed(error: Exception) -> Notice:
    """A packet that arrived could not be used."""
    return "$transit.error", {"error": error, "module": "transit", "type": "failedProcessingPacket"}


def transporter_failed(error: Exception) -> Notice:
    """The connection could not be made, or the server complains."""
    return "$transporter.error", {"error": error, "module": "transporter", "type": "clientError"}


def service_not_stopped(error: Exception) -> Notice:
    """A service's `stopped` raised."""
    return "$broker.error", {"error": error, "module": "broker", "type": "failedServiceDestruction"}
