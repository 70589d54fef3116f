"""The service `$node` itself: its actions, and the parameters that JS tools send (moleculer protocol §10)."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from broker.context import Context
from broker.errors import MoleculerClientError, ValidationError
from broker.internals.health import health
from broker.internals.listing import list_actions, list_events, list_nodes, list_services
from broker.masking import masked, masked_servers
from broker.options import BrokerOptions
from broker.protocol.javascript import camel
from broker.services.decorators import action
from broker.services.service import Service
from broker.services.validator_schema import converted

NAME = "$node"

Rules = Mapping[str, dict[str, Any]]
"""Parameters in the words of the JS validator, by name."""


def _flags(*names: str, default: bool = False) -> Rules:
    rule = {"type": "boolean", "optional": True, "convert": True, "default": default}
    return dict.fromkeys(names, rule)


LIST = _flags("withServices", "onlyAvailable")
SERVICES = {
    **_flags("onlyLocal", "skipInternal", "withActions", "withEvents", "onlyAvailable"),
    **_flags("grouping", default=True),
}
ENDPOINTS = _flags("onlyLocal", "skipInternal", "withEndpoints", "onlyAvailable")
_TEXTS = {"type": "multi", "optional": True, "rules": [{"type": "string"}, {"type": "array", "items": "string"}]}
METRICS = dict.fromkeys(("types", "includes", "excludes"), _TEXTS)

# Neither cached nor traced, and published exactly as JS nodes publish theirs.
_PLAIN: dict[str, Any] = {"cache": False, "tracing": False}


class NodeService(Service):
    """What every node offers about itself, whatever services it runs."""

    name = NAME

    @action(name="list", params=LIST, **_PLAIN)
    async def list_nodes(self, ctx: Context) -> list[dict[str, Any]]:
        return list_nodes(self.broker.registry, **_checked(ctx, LIST))

    @action(name="services", params=SERVICES, **_PLAIN)
    async def list_services(self, ctx: Context) -> list[dict[str, Any]]:
        return list_services(self.broker.registry, **_checked(ctx, SERVICES))

    @action(name="actions", params=ENDPOINTS, **_PLAIN)
    async def list_actions(self, ctx: Context) -> list[dict[str, Any]]:
        return list_actions(self.broker.registry, **_checked(ctx, ENDPOINTS))

    @action(name="events", params=ENDPOINTS, **_PLAIN)
    async def list_events(self, ctx: Context) -> list[dict[str, Any]]:
        return list_events(self.broker.registry, **_checked(ctx, ENDPOINTS))

    @action(name="health", **_PLAIN)
    async def health(self, ctx: Context) -> dict[str, Any]:
        local = self.broker.registry.local
        return health(local.client, local.ip_list)

    @action(name="options", params={}, **_PLAIN)
    async def options(self, ctx: Context) -> dict[str, Any]:
        return show_options(self.broker.options)

    @action(name="metrics", params=METRICS, **_PLAIN)
    async def metrics(self, ctx: Context) -> list[dict[str, Any]]:
        _checked(ctx, METRICS)
        raise MoleculerClientError("Metrics feature is disabled", 400, "METRICS_DISABLED")


def _checked(ctx: Context, rules: Rules) -> dict[str, Any]:
    """The parameters of a call as keyword arguments. Raises ValidationError, with what a JS node says of each."""
    params = {} if ctx.params is None else ctx.params
    values: dict[str, Any] = {}
    wrong = [] if isinstance(params, dict) else [("object", "", params, "The params must be an object.")]
    for name, rule in rules.items() if not wrong else ():
        given = params.get(name)
        if rule is _TEXTS:
            kind, fits = "string", _is_text_or_texts(given)
        else:
            values[name] = rule["default"] if given is None else converted(given, rule)
            kind, fits = "boolean", isinstance(values[name], bool)
        if not fits:
            wrong.append((kind, name, given, f"The '{name}' field must be a {kind}."))
    if wrong:
        where = {"nodeID": ctx.node_id, "action": ctx.action}
        items = [{"type": kind, "message": text, "field": name, "actual": value} for kind, name, value, text in wrong]
        raise ValidationError("Parameters validation error!", None, [item | where for item in items])
    return {re.sub("[A-Z]", lambda found: f"_{found[0].lower()}", name): value for name, value in values.items()}


def _is_text_or_texts(value: Any) -> bool:
    return isinstance(value, str | None) or (isinstance(value, list) and all(isinstance(item, str) for item in value))


def show_options(options: BrokerOptions) -> dict[str, Any]:
    """Options as tools read them: no functions, no objects, and never a password."""
    given = {field.name: getattr(options, field.name) for field in msgspec.structs.fields(options)}
    given["transporter"] = _address(given["transporter"])
    shown: dict[str, Any] = {camel(name): value for name, value in masked(given).items()}
    del shown["nodeId"], shown["shutdownTimeout"]
    return shown | {
        "nodeID": options.node_id,
        "requestTimeout": options.request_timeout * 1000,
        "tracking": {"enabled": True, "shutdownTimeout": options.shutdown_timeout * 1000},
        "registry": {name: shown.pop(name) for name in ("strategy", "strategyOptions", "preferLocal")},
    }


def _address(transporter: Any) -> Any:
    """A transport object of the user's own is shown by its kind."""
    if isinstance(transporter, str):
        return masked_servers(transporter)
    if isinstance(transporter, list | tuple):
        return [_address(part) for part in transporter]
    return None if transporter is None else type(transporter).__name__
