"""Connections to a message bus. `make_transport` picks one by its address."""

from collections.abc import Sequence
from typing import Any

from broker.errors import BrokerOptionsError
from broker.masking import split_servers
from broker.transports.base import Transport
from broker.transports.memory import Hub, MemoryTransport


def make_transport(transporter: object, options: dict[str, Any] | None = None) -> Transport | None:
    """The transport of a `transporter` option: a URL, a list of URLs, a Transport, or None for no cluster.

    Raises BrokerOptionsError for anything else.
    """
    if transporter is None or transporter == "":
        return None
    if isinstance(transporter, str) and transporter.startswith("memory://"):
        return MemoryTransport(Hub.named(transporter.removeprefix("memory://")))
    servers = split_servers(transporter) if isinstance(transporter, str) else transporter
    if isinstance(servers, Sequence) and all(isinstance(server, str) for server in servers):
        from broker.transports.nats import NATSTransport  # its client is loaded only where NATS is used

        return NATSTransport(list(servers), **(options or {}))
    if isinstance(transporter, Transport):  # also of the user's own
        return transporter
    raise BrokerOptionsError(
        f"The transporter cannot be a {type(transporter).__name__}. Use 'nats://host:4222', 'memory://name' or None."
    )
