"""The service `$node` itself: its actions, and the parameters that JS tools send (moleculer protocol §10)."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from broker.context import Context
from broker.errors import MoleculerClientError, ValidationError
from broker.internals.health import health
from broker.internals.listing import list_actions, list_events, list_nodes, list_services
from broker.masking import masked
from broker.options import BrokerOptions
from broker.protocol.javascript import camel
from broker.services.conversion import converted
from broker.services.service import Service, action

NAME = "$node"


def _flag(*, default: bool = False) -> dict[str, Any]:
    return {"type": "boolean", "optional": True, "convert": True, "default": default}


_TEXTS = {"type": "multi", "optional": True, "rules": [{"type": "string"}, {"type": "array", "items": "string"}]}

LIST = {"withServices": _flag(), "onlyAvailable": _flag()}
SERVICES = {
    **{name: _flag() for name in ("onlyLocal", "skipInternal", "withActions", "withEvents", "onlyAvailable")},
    "grouping": _flag(default=True),
}
ENDPOINTS = {name: _flag() for name in ("onlyLocal", "skipInternal", "withEndpoints", "onlyAvailable")}
METRICS = {"types": _TEXTS, "includes": _TEXTS, "excludes": _TEXTS}

# Neither cached nor traced, and published exactly as JS nodes publish theirs.
_PLAIN: dict[str, Any] = {"cache": False, "tracing": False}


class NodeService(Service):
    """What every node offers about itself, whatever services it runs."""

    name = NAME

    @action(name="list", params=LIST, **_PLAIN)
    async def list_nodes(self, ctx: Context) -> list[dict[str, Any]]:
        return list_nodes(self.broker.registry, **_flags(ctx, LIST))

    @action(name="services", params=SERVICES, **_PLAIN)
    async def list_services(self, ctx: Context) -> list[dict[str, Any]]:
        return list_services(self.broker.registry, **_flags(ctx, SERVICES))

    @action(name="actions", params=ENDPOINTS, **_PLAIN)
    async def list_actions(self, ctx: Context) -> list[dict[str, Any]]:
        return list_actions(self.broker.registry, **_flags(ctx, ENDPOINTS))

    @action(name="events", params=ENDPOINTS, **_PLAIN)
    async def list_events(self, ctx: Context) -> list[dict[str, Any]]:
        return list_events(self.broker.registry, **_flags(ctx, ENDPOINTS))

    @action(name="health", **_PLAIN)
    async def health(self, ctx: Context) -> dict[str, Any]:
        local = self.broker.registry.local
        return health(local.client, local.ip_list)

    @action(name="options", params={}, **_PLAIN)
    async def options(self, ctx: Context) -> dict[str, Any]:
        return show_options(self.broker.options)

    @action(name="metrics", params=METRICS, **_PLAIN)
    async def metrics(self, ctx: Context) -> list[dict[str, Any]]:
        _check_texts(ctx)
        raise MoleculerClientError("Metrics feature is disabled", 400, "METRICS_DISABLED")


def _flags(ctx: Context, params: Mapping[str, Mapping[str, Any]]) -> dict[str, bool]:
    """The booleans of a call as keyword arguments. Raises ValidationError for other values."""
    given = _given(ctx)
    flags: dict[str, bool] = {}
    wrong: list[dict[str, Any]] = []
    for name, rule in params.items():
        value = given.get(name)
        flag = rule["default"] if value is None else converted(value, dict(rule))
        if isinstance(flag, bool):
            flags[re.sub("[A-Z]", lambda found: f"_{found[0].lower()}", name)] = flag
        else:
            wrong.append(_item(ctx, "boolean", name, value, f"The '{name}' field must be a boolean."))
    if wrong:
        raise ValidationError("Parameters validation error!", None, wrong)
    return flags


def _check_texts(ctx: Context) -> None:
    """Raises ValidationError for a filter that is neither a string nor a list of strings."""
    wrong = [
        _item(ctx, "string", name, value, f"The '{name}' field must be a string.")
        for name, value in _given(ctx).items()
        if name in METRICS and value is not None and not _is_text_or_texts(value)
    ]
    if wrong:
        raise ValidationError("Parameters validation error!", None, wrong)


def _given(ctx: Context) -> dict[str, Any]:
    """The parameters. Raises ValidationError when they are not an object."""
    params = {} if ctx.params is None else ctx.params
    if not isinstance(params, dict):
        item = _item(ctx, "object", "", params, "The params must be an object.")
        raise ValidationError("Parameters validation error!", None, [item])
    return params


def _is_text_or_texts(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))


def _item(ctx: Context, kind: str, field: str, actual: Any, message: str) -> dict[str, Any]:
    where = {"nodeID": ctx.node_id, "action": ctx.action}
    return {"type": kind, "message": message, "field": field, "actual": actual, **where}


def show_options(options: BrokerOptions) -> dict[str, Any]:
    """Options as tools read them: no functions, no objects, and never a password."""
    given = {field.name: getattr(options, field.name) for field in msgspec.structs.fields(options)}
    given["transporter"] = _address(given["transporter"])
    shown: dict[str, Any] = {camel(name): value for name, value in masked(given).items()}
    shown["nodeID"] = options.node_id
    shown["requestTimeout"] = options.request_timeout * 1000
    shown["tracking"] = {"enabled": True, "shutdownTimeout": options.shutdown_timeout * 1000}
    registry = {name: shown.pop(name) for name in ("strategy", "strategyOptions", "preferLocal") if name in shown}
    shown["registry"] = registry
    for name in ("nodeId", "shutdownTimeout"):
        shown.pop(name, None)
    return shown


def _address(transporter: Any) -> Any:
    """As a URL with `://`, so that its password is found. A transport object of the user's own is shown by its kind."""
    match transporter:
        case None:
            return None
        case str():
            return ",".join(part if "://" in part else f"nats://{part}" for part in transporter.split(","))
        case list() | tuple():
            return [_address(part) for part in transporter]
        case _:
            return type(transporter).__name__
