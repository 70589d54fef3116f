"""What a node knows of the cluster, in the shapes that JS tools read (moleculer protocol §10)."""

from collections.abc import Callable, Iterable
from typing import Any

from broker.registry.endpoints import EndpointList, EventEndpoint
from broker.registry.nodes import KnownNode
from broker.registry.registry import Registry, entries

Row = dict[str, Any]


def list_nodes(registry: Registry, *, with_services: bool = False, only_available: bool = False) -> list[Row]:
    """Every node, this one first. JS nodes fail when asked for services; here they come along."""
    left_out = {"rawInfo"} if with_services else {"rawInfo", "services"}
    return [
        {key: value for key, value in node.describe(registry.started).items() if key not in left_out}
        for node in registry.nodes.values()
        if node.available or not only_available
    ]


def list_services(
    registry: Registry,
    *,
    only_local: bool = False,
    skip_internal: bool = False,
    with_actions: bool = False,
    with_events: bool = False,
    only_available: bool = False,  # nodes that are gone offer nothing, so all are
    grouping: bool = True,
) -> list[Row]:
    """Services, those of equal full name as one row when grouped; then actions and events are those of all nodes."""
    rows: dict[Any, Row] = {}
    nodes = [one for one in registry.nodes.values() if one.available and (one.local or not only_local)]
    for node, service in [(one, service) for one in nodes for service in one.services]:
        if skip_internal and service["name"].startswith("$"):
            continue
        name = service["fullName"]
        row = rows.setdefault(name if grouping else (node.id, name), _service_row(node, service))
        if not grouping:
            row["nodeID"] = node.id
        elif node.id not in row.setdefault("nodes", []):
            row["nodes"].append(node.id)
        if with_actions:
            row["actions"] = {**_named(service.get("actions")), **row.get("actions", {})}
        if with_events:
            events = {name: event for name, event in _named(service.get("events")).items() if not name.startswith("$")}
            row["events"] = {**events, **row.get("events", {})}
    return list(rows.values())


def _service_row(node: KnownNode, service: Row) -> Row:
    version = service.get("version")
    return {
        "name": service["name"],
        **({} if version is None else {"version": version}),
        "fullName": service["fullName"],
        "settings": service.get("settings") or {},
        "metadata": service.get("metadata") or {},
        "local": node.local,
        "available": node.available,
    }


def list_actions(registry: Registry, **wanted: bool) -> list[Row]:
    """Every action ever seen, also when no node offers it now."""
    return _rows(registry, registry.actions.values(), lambda first: {"action": first.info}, **wanted)


def list_events(registry: Registry, **wanted: bool) -> list[Row]:
    """Every pattern and group listened to, also when no node does so now."""
    return _rows(registry, registry.listeners.values(), lambda first: {"event": _event_of(registry, first)}, **wanted)


def _rows(
    registry: Registry,
    lists: Iterable[EndpointList[Any]],
    announced: Callable[[Any], Row],
    *,
    only_local: bool = False,
    skip_internal: bool = False,
    with_endpoints: bool = False,
    only_available: bool = False,
) -> list[Row]:
    """`state` of an endpoint is false while a circuit breaker keeps calls away; `available` is that of the node."""
    rows: list[Row] = []
    for one in lists:
        members = one.members
        row: Row = {"name": one.name, **({"group": one.group} if one.group else {}), "count": len(members)}
        row["hasLocal"] = any(member.local for member in members)
        row["available"] = any(member.available for member in members)
        left_out = (skip_internal and one.internal) or (only_local and not row["hasLocal"])
        if left_out or (only_available and not row["available"]):
            continue
        row |= announced(members[0]) if members else {}
        if with_endpoints and members:
            row["endpoints"] = [
                {"nodeID": node_id, "state": state, "available": registry.nodes[node_id].available}
                for node_id, state in ((member.node_id, member.available) for member in members)
            ]
        rows.append(row)
    return rows


def _event_of(registry: Registry, listener: EventEndpoint) -> Row:
    """How its node announced an event handler."""
    for service in registry.nodes[listener.node_id].services:
        if service["fullName"] == listener.service:
            return dict(_named(service.get("events")).get(listener.name, {"name": listener.name}))
    return {"name": listener.name}


def _named(announced: object) -> dict[str, Row]:
    """Actions or events by name."""
    return {entry["name"]: entry for entry in entries(announced)}
