"""The options of a node, in the words and units of Moleculer JS (moleculer protocol §10 `$node.options`)."""

from typing import Any

import msgspec

from broker.masking import masked
from broker.options import BrokerOptions
from broker.protocol.javascript import camel

_MILLISECONDS = 1000


def show_options(options: BrokerOptions) -> dict[str, Any]:
    """Options as tools read them: no functions, no objects, and never a password."""
    given = {field.name: getattr(options, field.name) for field in msgspec.structs.fields(options)}
    given["transporter"] = _address(given["transporter"])
    shown: dict[str, Any] = {camel(name): value for name, value in masked(given).items()}
    shown["nodeID"] = options.node_id
    shown["requestTimeout"] = options.request_timeout * _MILLISECONDS
    shown["tracking"] = {"enabled": True, "shutdownTimeout": options.shutdown_timeout * _MILLISECONDS}
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
