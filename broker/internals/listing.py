"""What a node knows of the cluster, in the shapes that JS tools read (moleculer protocol §10)."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from broker.registry.endpoints import Endpoint, EndpointList, EventEndpoint
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
    rows: list[Row] = []
    by_name: dict[str, Row] = {}
    for node, service in _services(registry, only_local=only_local):
        if skip_internal and service["name"].startswith("$"):
            continue
        row = by_name.get(service["fullName"]) if grouping else None
        if row is None:
            row = _service_row(node, service, grouping=grouping)
            rows.append(row)
            by_name[service["fullName"]] = row
        elif node.id not in row["nodes"]:
            row["nodes"].append(node.id)
        if with_actions:
            row["actions"] = {**_named(service.get("actions")), **row.get("actions", {})}
        if with_events:
            heard = {name: event for name, event in _named(service.get("events")).items() if not name.startswith("$")}
            row["events"] = {**heard, **row.get("events", {})}
    return rows


def list_actions(registry: Registry, **wanted: bool) -> list[Row]:
    """Every action ever seen, also when no node offers it now."""
    return _rows(registry, registry.actions.values(), "action", lambda first: first.info, **wanted)


def list_events(registry: Registry, **wanted: bool) -> list[Row]:
    """Every pattern and group listened to, also when no node does so now."""
    return _rows(registry, registry.listeners.values(), "event", lambda first: _event_of(registry, first), **wanted)


def _rows(
    registry: Registry,
    lists: Iterable[EndpointList[Any]],
    kind: str,
    announced: Callable[[Any], Row],
    *,
    only_local: bool = False,
    skip_internal: bool = False,
    with_endpoints: bool = False,
    only_available: bool = False,
) -> list[Row]:
    rows: list[Row] = []
    for one in lists:
        members = one.members
        row: Row = {"name": one.name, **({"group": one.group} if kind == "event" else {}), "count": len(members)}
        row["hasLocal"] = any(member.local for member in members)
        row["available"] = any(member.available for member in members)
        if (skip_internal and one.internal) or (only_local and not row["hasLocal"]):
            continue
        if only_available and not row["available"]:
            continue
        if members:
            row[kind] = announced(members[0])
            if with_endpoints:
                row["endpoints"] = _endpoints(registry, members)
        rows.append(row)
    return rows


def _services(registry: Registry, *, only_local: bool) -> Iterator[tuple[KnownNode, Row]]:
    for node in registry.nodes.values():
        if node.available and (node.local or not only_local):
            for service in node.services:
                yield node, service


def _service_row(node: KnownNode, service: Row, *, grouping: bool) -> Row:
    row: Row = {"name": service["name"]}
    if service.get("version") is not None:
        row["version"] = service["version"]
    row |= {
        "fullName": service["fullName"],
        "settings": service.get("settings") or {},
        "metadata": service.get("metadata") or {},
        "local": node.local,
        "available": node.available,
    }
    return row | ({"nodes": [node.id]} if grouping else {"nodeID": node.id})


def _endpoints(registry: Registry, members: Iterable[Endpoint | EventEndpoint]) -> list[Row]:
    """`state` is false while a circuit breaker keeps calls away; `available` is that of the node."""
    return [
        {"nodeID": member.node_id, "state": member.available, "available": registry.nodes[member.node_id].available}
        for member in members
    ]


def _event_of(registry: Registry, listener: EventEndpoint) -> Row:
    """How its node announced an event handler."""
    for service in registry.nodes[listener.node_id].services:
        if service["fullName"] == listener.service:
            return dict(_named(service.get("events")).get(listener.name, {"name": listener.name}))
    return {"name": listener.name}


def _named(announced: object) -> dict[str, Row]:
    """Actions or events by name."""
    return {entry["name"]: entry for entry in entries(announced)}
