"""The services and the actions of a cluster."""

import time
from contextlib import nullcontext
from typing import Annotated, Any, NoReturn

import typer

from broker.broker import ServiceBroker
from broker.cli.cluster import Visit, on_cluster, until_signal
from broker.cli.output import is_person, live_rows, print_json, print_rows

Row = dict[str, Any]
Everything = Annotated[bool, typer.Option("--all", help="Include internal ones, such as $node.")]

SERVICE_COLUMNS = ["name", "version", "actions", "nodes"]


@on_cluster
async def services(
    visit: Visit,
    watch: Annotated[bool, typer.Option("--watch", help="Go on, and show changes as they happen.")] = False,
    everything: Everything = False,
) -> None:
    """List the services of the cluster. With --watch and piped, one JSON object for each change, a line each."""
    json = visit.json or not is_person()
    with until_signal() if watch else nullcontext():
        async with visit.broker() as broker:
            if watch:
                await _watch(broker, everything=everything, json=json)
            rows = _services(broker, everything=everything)
            print_rows(rows if json else _counted(rows), SERVICE_COLUMNS, json=json)


@on_cluster
async def actions(visit: Visit, everything: Everything = False) -> None:
    """List the actions of the cluster with their parameters."""
    async with visit.broker() as broker:
        rows = []
        for name, known in sorted(broker.registry.actions.items()):
            endpoints = [endpoint for endpoint in known.members if not endpoint.local]
            if endpoints and (everything or not name.startswith("$")):
                params = endpoints[0].info.get("params")
                rows.append(
                    {
                        "name": name,
                        "nodes": [endpoint.node_id for endpoint in endpoints],
                        "params": params if isinstance(params, dict) else {},
                    }
                )
        print_rows(rows, ["name", "nodes", "params"], json=visit.json)


def changes(before: dict[str, Row], now: dict[str, Row]) -> list[Row]:
    """What happened to services between two looks at them: each row with `change` as added, changed or removed."""
    removed = [{"change": "removed", **row, "nodes": []} for name, row in before.items() if name not in now]
    added = [{"change": "added", **row} for name, row in now.items() if name not in before]
    changed = [{"change": "changed", **row} for name, row in now.items() if before.get(name, row) != row]
    return [*removed, *added, *changed]


async def _watch(broker: ServiceBroker, *, everything: bool, json: bool) -> NoReturn:
    known: dict[str, Row] = {}
    with live_rows(SERVICE_COLUMNS, show=not json) as show:
        while True:
            rows = _services(broker, everything=everything)
            show(_counted(rows))
            now = {row["name"]: row for row in rows}
            for change in changes(known, now) if json else ():
                print_json({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **change}, flush=True)
            known = now
            await broker.registry_changed()


def _services(broker: ServiceBroker, *, everything: bool) -> list[Row]:
    found: dict[str, Row] = {}
    for node in broker.registry.nodes.values():
        for service in node.services if node.available and not node.local else ():
            name = service["fullName"]
            if everything or not name.startswith("$"):
                row = found.setdefault(name, {"name": name, "nodes": [], "actions": []})
                row["nodes"].append(node.id)
                offered = service.get("actions")
                row["actions"] = sorted(offered) if isinstance(offered, dict) else []
                row["version"] = service.get("version")
    return [found[name] for name in sorted(found)]


def _counted(rows: list[Row]) -> list[Row]:
    """Rows for a table: the names of actions have a command of their own."""
    return [{**row, "actions": len(row["actions"])} for row in rows]
