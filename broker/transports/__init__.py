"""Connections to a message bus. `make_transport` picks one by its address."""

from collections.abc import Sequence
from typing import Any

from broker.errors import BrokerOptionsError
from broker.transports.base import Transport
from broker.transports.memory import Hub, MemoryTransport


def make_transport(transporter: object, options: dict[str, Any] | None = None) -> Transport | None:
    """The transport of a `transporter` option: a URL, a list of URLs, a Transport, or None for no cluster.

    Raises BrokerOptionsError for what is none of these.
    """
    if transporter is None or transporter == "":
        return None
    if isinstance(transporter, str):
        if transporter.startswith("memory://"):
            return MemoryTransport(Hub.named(transporter.removeprefix("memory://")))
        return _nats([part.strip() for part in transporter.split(",") if part.strip()], options)
    if isinstance(transporter, Sequence) and all(isinstance(part, str) for part in transporter):
        return _nats(list(transporter), options)
    if callable(getattr(transporter, "publish", None)):
        return transporter  # type: ignore[return-value]  # a Transport of the user's own: duck-typed
    raise BrokerOptionsError(
        f"The transporter cannot be a {type(transporter).__name__}. Use 'nats://host:4222', 'memory://name' or None."
    )


def _nats(servers: list[str], options: dict[str, Any] | None) -> Transport:
    from broker.transports.nats import NATSTransport  # only who uses NATS loads its client

    return NATSTransport(servers, **(options or {}))
