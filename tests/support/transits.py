"""The pure part of a node, for tests that feed packets and compare effects."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from msgspec import Raw

from broker.context import Context
from broker.conversation.effects import Effect, Publish
from broker.conversation.presence_packets import Identity
from broker.conversation.transit import Limits, Transit
from broker.protocol.codecs.json import JSONCodec
from broker.protocol.packets import Command, Info, Protocol, Request
from broker.protocol.topics import Topics
from broker.registry.registry import Registry
from broker.services.decorators import action, event
from broker.services.service import Service, define

__all__ = [
    "GOLDEN",
    "Math",
    "captured",
    "captured_packet",
    "info",
    "make_transit",
    "meet",
    "offer",
    "publishes",
    "request",
    "service_info",
    "subjects",
]

GOLDEN = Path(__file__).parents[1] / "golden"


class Math(Service):
    """A service with actions of each visibility, and events of several patterns and groups."""

    name = "math"

    @action
    async def add(self, ctx: Context) -> None: ...

    @action(visibility="private")
    async def hidden(self, ctx: Context) -> None: ...

    @action(visibility="protected")
    async def inner(self, ctx: Context) -> None: ...

    @event("user.*")
    async def first(self, ctx: Context) -> None: ...

    @event("user.created")
    async def second(self, ctx: Context) -> None: ...

    @event("user.c*", group="audit")
    async def third(self, ctx: Context) -> None: ...


def make_transit(
    node_id: str = "py-1",
    *,
    protocol: Protocol | None = None,
    namespace: str = "",
    requests_in_work: int = 10,
    requests_pending: int = 10,
    metadata: dict[str, Any] | None = None,
    visitor: bool = False,
) -> Transit:
    """A started node, which answers requests and knows no peers."""
    identity = Identity(node_id, f"instance of {node_id}", "host", ["10.0.0.1"], {"type": "python"}, metadata or {})
    limits = Limits(30.0, requests_in_work, requests_pending)
    transit = Transit(identity, Topics(namespace), Registry(node_id), limits, JSONCodec(), protocol, visitor=visitor)
    transit.ready = True
    return transit


def offer(transit: Transit, *services: Service) -> None:
    """Make the node offer services, as the service host does once they have started."""
    for service in services:
        transit.registry.add_service(define(service))
        transit.presence.service_changed()


def service_info(
    name: str, *actions: str, events: tuple[str, ...] = (), group: str | None = None, **more: Any
) -> dict[str, Any]:
    """A service as a peer announces it. `actions` are names within the service."""
    full_name = more.get("fullName", name)
    return {
        "name": name,
        "fullName": full_name,
        "settings": {},
        "metadata": {},
        "actions": {f"{full_name}.{raw}": {"name": f"{full_name}.{raw}", "rawName": raw} for raw in actions},
        "events": {event: {"name": event, **({"group": group} if group else {})} for event in events},
        **more,
    }


def info(
    sender: str, *services: dict[str, Any], ver: Any = "5", sequence: int | None = 2, instance: str | None = None
) -> Info:
    """The INFO of a peer."""
    return Info(
        ver=ver,
        sender=sender,
        services=list(services),
        ip_list=["10.0.0.2"],
        hostname=f"host of {sender}",
        client={"type": "nodejs"},
        config={},
        instance_id=instance or f"instance of {sender}",
        metadata={},
        sequence=sequence,
    )


def request(action: str, sender: str = "js-1", *, ver: Any = "5", id: str = "r-1", **fields: Any) -> Request:
    """A call of a peer."""
    return Request(ver=ver, sender=sender, id=id, action=action, **{"params": Raw(b"{}"), **fields})


def meet(transit: Transit, node_id: str, *services: dict[str, Any], ver: str = "5", now: float = 0.0) -> None:
    """Receive the INFO of a peer with these services."""
    transit.receive("INFO", info(node_id, *services, ver=ver), now)


def publishes(effects: Sequence[Effect]) -> list[Publish]:
    """The effects, which must all be packets to send."""
    assert all(isinstance(effect, Publish) for effect in effects), effects
    return [effect for effect in effects if isinstance(effect, Publish)]


def subjects(effects: Sequence[Effect]) -> list[tuple[str, Any]]:
    """Subject and protocol version of each packet to send."""
    return [(effect.subject, effect.packet.ver) for effect in publishes(effects)]


def captured(protocol: str) -> Iterator[tuple[int, Command, dict[str, Any], str]]:
    """Every packet that real nodes of a protocol version sent: line number, command, packet, note."""
    with (GOLDEN / f"protocol-{protocol}.jsonl").open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            entry = json.loads(line)
            command = entry["subject"].split(".")[1].removesuffix("B")  # balanced topics carry the same packets
            yield number, command, entry["payload"], entry["note"]


def captured_packet(protocol: str, line: int) -> dict[str, Any]:
    """The packet of one line of a capture."""
    return next(packet for number, _command, packet, _note in captured(protocol) if number == line)
