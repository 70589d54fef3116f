"""Events sent by this node (moleculer protocol §7.1)."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import UNSET, Raw

from broker.context import Caller, CallOptions, Context, EventArguments
from broker.conversation.effects import Publish
from broker.errors import BrokerDisconnectedError
from broker.node.node import Node
from broker.registry.endpoints import EventEndpoint

logger = logging.getLogger("broker")


def event_options(given: EventArguments) -> dict[str, Any]:
    """The options of an event. Raises TypeError for an unknown one."""
    for name in given:
        if name not in EventArguments.__annotations__:
            known = ", ".join(EventArguments.__annotations__)
            raise TypeError(f"An event has no option '{name}'; there are {known}.")
    groups = given.get("groups")
    return {**given, "groups": [groups]} if isinstance(groups, str) else dict(given)


class EventSender:
    """Sends events to nodes, and to the listeners of this one, which `run_here` runs."""

    def __init__(self, broker: Caller, node: Node, run_here: Callable[[EventEndpoint, Context], None]) -> None:
        self._broker = broker
        self._node = node
        self._transit = node.transit
        self._registry = node.transit.registry
        self._codec = node.codec
        self._run_here = run_here
        self._balanced = node.options.disable_balancer and node.transport is not None

    async def emit(self, event: str, data: Any, options: Mapping[str, Any]) -> None:
        """To one node of each group: a group that listens with two patterns still gets it on one node only."""
        root, chosen = self._context(event, data, options), dict[str, str]()
        lists = self._registry.find_listeners(event, options.get("groups") or ())
        if self._balanced:  # NATS gives the packet of a group to one of its nodes, this one too (§7.1)
            for choices in lists:
                chosen.setdefault(choices.group, choices.members[0].node_id)
            encoded = self._codec.encode_value(data)
            for group, node_id in chosen.items():
                subject = self._transit.topics.balanced_event(group, event)
                await self._send(root, encoded, node_id, [group], broadcast=False, balanced=(subject, group))
            return
        here: list[EventEndpoint] = []
        for choices in lists:
            group = choices.group
            listener = choices.choose_on(chosen[group], root) if group in chosen else choices.choose(root)
            if listener is not None:
                chosen.setdefault(group, listener.node_id)
                if listener.local:
                    here.append(listener)
        by_node: dict[str, list[str]] = {}
        for group, node_id in chosen.items():
            by_node.setdefault(node_id, []).append(group)
        await self._deliver(root, data, options, here, by_node, broadcast=False)

    async def broadcast(self, event: str, data: Any, options: Mapping[str, Any]) -> None:
        """To every listener of every node."""
        lists = list(self._registry.find_listeners(event, options.get("groups") or ()))
        listeners = [listener for choices in lists for listener in choices.members]
        root, groups = self._context(event, data, options), options.get("groups") or UNSET
        if self._balanced:  # the packet names the groups, and this node gets one too (§7.1)
            if groups is UNSET:
                groups = list(dict.fromkeys(choices.group for choices in lists))
            encoded = self._codec.encode_value(data)
            for node_id in dict.fromkeys(listener.node_id for listener in listeners):
                await self._send(root, encoded, node_id, groups, broadcast=True)
            return
        here = [listener for listener in listeners if listener.local]
        by_node = dict.fromkeys((listener.node_id for listener in listeners), groups)
        await self._deliver(root, data, options, here, by_node, broadcast=True)

    async def broadcast_local(self, event: str, data: Any, options: Mapping[str, Any]) -> None:
        """To every listener of this node."""
        here = [
            listener
            for choices, members in self._registry.find_listeners_here(event)
            if not options.get("groups") or choices.group in options["groups"]
            for listener in members
        ]
        await self._deliver(self._context(event, data, options), data, options, here, {}, broadcast=True)

    async def _deliver(
        self,
        root: Context,
        data: Any,
        options: Mapping[str, Any],
        here: list[EventEndpoint],
        by_node: Mapping[str, Any],
        *,
        broadcast: bool,
    ) -> None:
        """Run the handlers of this node, and send the event to each other node with its groups."""
        for listener in here:
            self._run_here(listener, self._context(root.event or "", data, options))
        others = {node_id: groups for node_id, groups in by_node.items() if node_id != self._node.options.node_id}
        if others:
            encoded = self._codec.encode_value(data)
            for node_id, groups in others.items():
                await self._send(root, encoded, node_id, groups, broadcast=broadcast)

    async def _send(
        self,
        root: Context,
        data: Raw,
        node_id: str,
        groups: Any,
        *,
        broadcast: bool,
        balanced: tuple[str, str] | None = None,
    ) -> None:
        """Send one packet, to a node or with `balanced` to the subject of a group, whose nodes take it with the id of
        the event."""
        packet = root.to_event(self._transit.presence.version_for(node_id), data, groups, broadcast=broadcast)
        if balanced is None:
            subject, receiver = self._transit.topics.to_node("EVENT", node_id), node_id
        else:
            subject, receiver = balanced
            packet.id = root.request_id
        try:
            await self._node.send(Publish(subject, packet))
        except BrokerDisconnectedError as error:  # as in JS, delivery of an event is not guaranteed (§7.1)
            logger.warning("Event '%s' was not sent to '%s': %s", root.event, receiver, error)

    def _context(self, event: str, data: Any, options: Mapping[str, Any]) -> Context:
        given = CallOptions(
            meta=dict(options.get("meta") or {}), headers=options.get("headers"), parent=options.get("parent")
        )
        return Context.outgoing(self._broker, self._node.options.node_id, given, event=event, params=data)
