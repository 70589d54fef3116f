"""Lists of what the cluster has."""

import time
from typing import Annotated, Any

import typer

from broker.broker import ServiceBroker
from broker.cli import options
from broker.cli.client import with_broker
from broker.cli.output import is_person, live_rows, print_json, print_rows
from broker.registry.registry import Registry

Row = dict[str, Any]

SERVICE_COLUMNS = ["name", "version", "actions", "nodes"]


def nodes(
    nats: options.NatsUrl = options.DEFAULT_NATS,
    namespace: options.Namespace = "",
    protocol: options.ProtocolVersion = None,
    as_json: options.AsJson = False,
) -> None:
    """List the nodes of the cluster."""

    async def work(broker: ServiceBroker) -> None:
        known = [node for node in broker.registry.nodes.values() if not node.local]
        rows: list[Row] = [
            {
                "id": node.id,
                "client": f"{node.client.get('type', '?')} {node.client.get('version', '?')}",
                "protocol": node.ver,
                "hostname": node.hostname,
                "services": [service["fullName"] for service in node.services if not _is_internal(service["fullName"])],
                "cpu": node.cpu,
                "available": node.available,
            }
            for node in known
        ]
        # Another node knows these, and they did not say what they are.
        rows += [{"id": name, "protocol": ver, "available": False} for name, ver in broker.peers.named.items()]
        rows.sort(key=lambda row: row["id"])
        print_rows(rows, ["id", "client", "protocol", "hostname", "services", "cpu", "available"], json=as_json)

    with_broker(work, nats, namespace, protocol)


def services(
    watch: Annotated[bool, typer.Option("--watch", help="Go on, and show changes as they happen.")] = False,
    everything: options.Everything = False,
    nats: options.NatsUrl = options.DEFAULT_NATS,
    namespace: options.Namespace = "",
    protocol: options.ProtocolVersion = None,
    as_json: options.AsJson = False,
) -> None:
    """List the services of the cluster. With --watch and piped, one JSON object for each change, a line each."""

    async def work(broker: ServiceBroker) -> None:
        if watch:
            await _watch(broker, everything=everything, json=as_json or not is_person())
            return
        rows = _services(broker.registry, everything=everything)
        print_rows(_counted(rows) if is_person() and not as_json else rows, SERVICE_COLUMNS, json=as_json)

    with_broker(work, nats, namespace, protocol, until_stopped=watch)


def actions(
    everything: options.Everything = False,
    nats: options.NatsUrl = options.DEFAULT_NATS,
    namespace: options.Namespace = "",
    protocol: options.ProtocolVersion = None,
    as_json: options.AsJson = False,
) -> None:
    """List the actions of the cluster with their parameters."""

    async def work(broker: ServiceBroker) -> None:
        rows = []
        for name, choices in sorted(broker.registry.actions.items()):
            endpoints = [endpoint for endpoint in choices.members if not endpoint.local]
            if endpoints and (everything or not _is_internal(name)):
                params = endpoints[0].info.get("params")
                rows.append(
                    {
                        "name": name,
                        "nodes": [endpoint.node_id for endpoint in endpoints],
                        "params": params if isinstance(params, dict) else {},
                    }
                )
        table = [{**row, "params": list(row["params"])} for row in rows] if is_person() else rows
        print_rows(rows if as_json else table, ["name", "nodes", "params"], json=as_json)

    with_broker(work, nats, namespace, protocol)


def changes(before: dict[str, Row], now: dict[str, Row]) -> list[Row]:
    """What happened to services between two looks at them, each row with what it was: added, changed or removed."""
    added = [{"change": "added", **row} for name, row in now.items() if name not in before]
    changed = [{"change": "changed", **row} for name, row in now.items() if name in before and before[name] != row]
    removed = [{"change": "removed", **row, "nodes": []} for name, row in before.items() if name not in now]
    return [*removed, *added, *changed]


async def _watch(broker: ServiceBroker, *, everything: bool, json: bool) -> None:
    known: dict[str, Row] = {}
    with live_rows(SERVICE_COLUMNS, show=not json) as show:
        while True:
            rows = _services(broker.registry, everything=everything)
            now = {row["name"]: row for row in rows}
            if json:
                for change in changes(known, now):
                    print_json({"time": _now(), **change}, flush=True)
            show(_counted(rows))
            known = now
            await broker.registry_changed()


def _services(registry: Registry, *, everything: bool) -> list[Row]:
    found: dict[str, Row] = {}
    for node in registry.nodes.values():
        for service in node.services if node.available and not node.local else ():
            name = service["fullName"]
            if _is_internal(name) and not everything:
                continue
            row = found.setdefault(name, {"name": name, "nodes": [], "actions": []})
            row["nodes"].append(node.id)
            offered = service.get("actions")
            row["actions"] = sorted(offered) if isinstance(offered, dict) else []
            row["version"] = service.get("version")
    return [found[name] for name in sorted(found)]


def _counted(rows: list[Row]) -> list[Row]:
    """For a table: actions have a command of their own."""
    return [{**row, "actions": len(row["actions"])} for row in rows]


def _is_internal(name: str) -> bool:
    """Every node has these, and few users look for them."""
    return name.startswith("$")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
