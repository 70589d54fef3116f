"""Events sent by this node (moleculer protocol §7.1)."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from msgspec import UNSET, Raw

from broker.context import Caller, CallOptions, Context
from broker.conversation.effects import Publish
from broker.conversation.transit import Transit
from broker.errors import BrokerDisconnectedError
from broker.node.node import Node
from broker.protocol.codecs.json import Codec
from broker.protocol.packets import Event
from broker.registry.endpoints import EventEndpoint
from broker.registry.registry import Registry

logger = logging.getLogger("broker")


class EventOptions(TypedDict, total=False):
    """What may be said with an event."""

    groups: str | Sequence[str] | None
    """The only groups that shall hear it; None for all."""
    meta: dict[str, Any] | None
    headers: Mapping[str, Any] | None
    parent: Context | None
    """The context of the request that it belongs to; `ctx.emit` fills it in."""


def event_options(given: EventOptions) -> dict[str, Any]:
    """The options of an event. Raises TypeError for an unknown one."""
    for name in given:
        if name not in EventOptions.__annotations__:
            known = ", ".join(EventOptions.__annotations__)
            raise TypeError(f"An event has no option '{name}'; there are {known}.")
    groups = given.get("groups")
    return {**given, "groups": [groups]} if isinstance(groups, str) else dict(given)


class EventSender:
    """Sends events to nodes, and to the listeners of this one."""

    def __init__(
        self,
        broker: Caller,
        node: Node,
        transit: Transit,
        registry: Registry,
        codec: Codec,
        run_here: Callable[[EventEndpoint, Context], None],
    ) -> None:
        self._broker = broker
        self._node = node
        self._transit = transit
        self._registry = registry
        self._codec = codec
        self._run_here = run_here
        self._balanced = node.options.disable_balancer and node.transport is not None

    async def emit(self, event: str, data: Any, options: Mapping[str, Any]) -> None:
        """To one node of each group: a group that listens with two patterns still gets it on one node only."""
        if self._balanced:
            await self._emit_balanced(event, data, options)
            return
        groups: Sequence[str] = options.get("groups") or ()
        root = self._context(event, data, options)
        chosen: dict[str, str] = {}
        here: list[EventEndpoint] = []
        for choices in self._registry.find_listeners(event, groups):
            group = choices.group
            if group in chosen:
                listener = choices.choose_on(chosen[group], root)
            else:
                listener = choices.choose(root)
                if listener is not None:
                    chosen[group] = listener.node_id
            if listener is not None and listener.local:
                here.append(listener)
        by_node: dict[str, list[str]] = {}
        for group, node_id in chosen.items():
            by_node.setdefault(node_id, []).append(group)
        await self._deliver(event, data, options, here, by_node, broadcast=False)

    async def broadcast(self, event: str, data: Any, options: Mapping[str, Any]) -> None:
        """To every listener of every node."""
        if self._balanced:
            await self._broadcast_balanced(event, data, options)
            return
        groups: Sequence[str] = options.get("groups") or ()
        here: list[EventEndpoint] = []
        by_node: dict[str, list[str]] = {}
        for choices in self._registry.find_listeners(event, groups):
            for listener in choices.members:
                by_node.setdefault(listener.node_id, [])
                if listener.local:
                    here.append(listener)
        await self._deliver(event, data, options, here, by_node, broadcast=True)

    async def _emit_balanced(self, event: str, data: Any, options: Mapping[str, Any]) -> None:
        """One packet for each group, and NATS gives it to one of its nodes, this one too (§7.1)."""
        nodes: dict[str, str] = {}
        for choices in self._registry.find_listeners(event, options.get("groups") or ()):
            nodes.setdefault(choices.group, choices.members[0].node_id)
        root = self._context(event, data, options)
        encoded = self._codec.encode_value(data)
        for group, node_id in nodes.items():
            packet = self._packet(node_id, root, encoded, [group], broadcast=False)
            packet.id = root.request_id
            await self._publish(Publish(self._transit.topics.balanced_event(group, event), packet), event, group)

    async def _broadcast_balanced(self, event: str, data: Any, options: Mapping[str, Any]) -> None:
        """One packet for each node that listens, this one too, with the groups that are meant (§7.1)."""
        lists = list(self._registry.find_listeners(event, options.get("groups") or ()))
        groups = list(options.get("groups") or dict.fromkeys(choices.group for choices in lists))
        root = self._context(event, data, options)
        encoded = self._codec.encode_value(data)
        for node_id in dict.fromkeys(listener.node_id for choices in lists for listener in choices.members):
            packet = self._packet(node_id, root, encoded, groups, broadcast=True)
            await self._publish(Publish(self._transit.topics.to_node("EVENT", node_id), packet), event, node_id)

    async def broadcast_local(self, event: str, data: Any, options: Mapping[str, Any]) -> None:
        """To every listener of this node."""
        here = [
            listener
            for choices, members in self._registry.find_listeners_here(event)
            if not options.get("groups") or choices.group in options["groups"]
            for listener in members
        ]
        await self._deliver(event, data, options, here, {}, broadcast=True)

    async def _deliver(
        self,
        event: str,
        data: Any,
        options: Mapping[str, Any],
        here: list[EventEndpoint],
        by_node: Mapping[str, list[str]],
        *,
        broadcast: bool,
    ) -> None:
        root = self._context(event, data, options)
        for listener in here:
            self._run_here(listener, self._context(event, data, options))
        others = {node_id: groups for node_id, groups in by_node.items() if node_id != self._node.options.node_id}
        if not others:
            return
        encoded = self._codec.encode_value(data)
        for node_id, groups in others.items():
            wanted = (options.get("groups") or UNSET) if broadcast else groups
            packet = self._packet(node_id, root, encoded, wanted, broadcast=broadcast)
            await self._publish(Publish(self._transit.topics.to_node("EVENT", node_id), packet), event, node_id)

    async def _publish(self, packet: Publish, event: str, receiver: str) -> None:
        try:
            await self._node.send(packet)
        except BrokerDisconnectedError as error:  # as in JS, delivery of an event is not guaranteed (§7.1)
            logger.warning("Event '%s' was not sent to '%s': %s", event, receiver, error)

    def _packet(self, node_id: str, root: Context, data: Raw, groups: Any, *, broadcast: bool) -> Event:
        return root.to_event(self._transit.presence.version_for(node_id), data, groups, broadcast=broadcast)

    def _context(self, event: str, data: Any, options: Mapping[str, Any]) -> Context:
        given = CallOptions(
            meta=dict(options.get("meta") or {}), headers=options.get("headers"), parent=options.get("parent")
        )
        return Context.outgoing(self._broker, self._node.options.node_id, given, event=event, params=data)
