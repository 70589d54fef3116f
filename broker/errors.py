"""Every error of the broker, as it travels between nodes (moleculer protocol §6; the tree of classes is in §6.2).

Class names, codes, types and the `retryable` flags are those of Moleculer JS, so that both sides log the same words.
"""

from collections.abc import Mapping
from traceback import walk_tb
from types import TracebackType
from typing import Any, ClassVar

BROKER_STATE = "BROKER_STATE"
"""The type of an error about what a broker cannot do before its start, during it, or after its stop."""


class MoleculerError(Exception):
    """Base of all errors that cross the wire.

    `message` is for a person; `code` follows HTTP; `type` is for programs; `data` is any JSON value and reaches the
    caller as it is. `node_id` names the node the error came from, None while it is still local.
    """

    default_code: ClassVar[int] = 500
    default_type: ClassVar[str | None] = None
    default_retryable: ClassVar[bool] = False
    _name: str | None = None

    def __init__(self, message: Any, code: Any = None, type: str | None = None, data: Any = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = self.default_code if code is None else code
        self.type = self.default_type if type is None else type
        self.data = data
        self.retryable = self.default_retryable
        self.node_id: str | None = None
        self.stack: str | None = None

    @property
    def name(self) -> str:
        """The class name on the wire."""
        return self._name or type(self).__name__

    def __str__(self) -> str:
        return str(self.message)


class MoleculerRetryableError(MoleculerError):
    """A failure that another attempt may not meet: the retry middleware acts on it."""

    default_retryable = True


class MoleculerServerError(MoleculerRetryableError):
    """A failure on the serving side."""


class MoleculerClientError(MoleculerError):
    """The caller asked for something that cannot be."""

    default_code = 400


class ValidationError(MoleculerClientError):
    """Parameters do not fit. `data` is a list of `{type, field, message, …}`, one item a violation (§6.4)."""

    default_code, default_type = 422, "VALIDATION_ERROR"

    def __init__(self, message: Any, type: str | None = None, data: Any = None) -> None:
        super().__init__(message, None, type, data)


class _MessageError(MoleculerError):
    def __init__(self, message: Any, data: Any = None) -> None:
        super().__init__(message, None, None, data)


class PayloadTooLargeError(_MessageError, MoleculerClientError):
    """A packet would be larger than the NATS server takes (`max_payload`). `data`: `{size, limit}` in bytes."""

    default_code, default_type = 413, "PAYLOAD_TOO_LARGE"


class _DataError(MoleculerError):
    """An error whose message is made from its `data`, on both sides of the wire (§6.3)."""

    template: ClassVar[str]

    def __init__(self, data: Mapping[str, Any] | None = None) -> None:
        fields = dict(data or {})
        super().__init__(self.describe(fields), None, None, fields)

    @classmethod
    def describe(cls, data: dict[str, Any]) -> str:
        fields: dict[str, Any] = {name: data.get(name) for name in ("action", "nodeID", "level")}
        return cls.template.format(**fields, on_node=f" on '{data['nodeID']}' node" if data.get("nodeID") else "")


class ServiceNotFoundError(_DataError, MoleculerRetryableError):
    """No node has ever offered the action. `data`: `{action, nodeID?}` or `{service, version?}`."""

    default_code, default_type = 404, "SERVICE_NOT_FOUND"
    template = "Service '{action}' is not found{on_node}."

    @classmethod
    def describe(cls, data: dict[str, Any]) -> str:
        if not data.get("service"):
            return super().describe(data)
        version = f"{data['version']}." if data.get("version") else ""
        return f"Service '{version}{data['service']}' not found."


class ServiceNotAvailableError(_DataError, MoleculerRetryableError):
    """The action is known, but no node offers it now. `data`: `{action, nodeID?}`."""

    default_code, default_type = 404, "SERVICE_NOT_AVAILABLE"
    template = "Service '{action}' is not available{on_node}."


class RequestTimeoutError(_DataError, MoleculerRetryableError):
    """No answer within the timeout. `data`: `{action, nodeID}`."""

    default_code, default_type = 504, "REQUEST_TIMEOUT"
    template = "Request is timed out when call '{action}' action on '{nodeID}' node."


class RequestRejectedError(_DataError, MoleculerRetryableError):
    """The node that should answer is gone. `data`: `{action, nodeID}`."""

    default_code, default_type = 503, "REQUEST_REJECTED"
    template = "Request is rejected when call '{action}' action on '{nodeID}' node."


class QueueIsFullError(_DataError, MoleculerRetryableError):
    """A bounded queue has no room. `data`: `{action, nodeID, size, limit}`."""

    default_code, default_type = 429, "QUEUE_FULL"
    template = "Queue is full. Request '{action}' action on '{nodeID}' node is rejected."


class RequestSkippedError(_DataError):
    """The time for the whole chain of calls is over, so this call was not made. `data`: `{action, nodeID}`."""

    default_code, default_type = 514, "REQUEST_SKIPPED"
    template = "Calling '{action}' is skipped because timeout reached on '{nodeID}' node."


class MaxCallLevelError(_DataError):
    """Calls are nested deeper than allowed. `data`: `{nodeID, level}`."""

    default_type = "MAX_CALL_LEVEL"
    template = "Request level is reached the limit ({level}) on '{nodeID}' node."


class GracefulStopTimeoutError(_DataError):
    """Something would not stop in time. `data`: `{name, version}` of a service, or nothing for the broker."""

    default_type = "GRACEFUL_STOP_TIMEOUT"

    @classmethod
    def describe(cls, data: dict[str, Any]) -> str:
        what = f"'{data['name']}' service" if data.get("name") else "ServiceBroker"
        return f"Unable to stop {what} gracefully."


class ProtocolVersionMismatchError(_DataError):
    """A packet of a protocol version this node is not set to speak. `data`: `{nodeID, actual, received}`."""

    default_type = "PROTOCOL_VERSION_MISMATCH"
    template = "Protocol version mismatch."


class InvalidPacketDataError(_DataError):
    """Bytes that are not a packet."""

    default_type = "INVALID_PACKET_DATA"
    template = "Invalid packet data."


class BrokerDisconnectedError(_MessageError, MoleculerRetryableError):
    """The connection to NATS is down."""

    default_code, default_type = 502, "BAD_GATEWAY"

    def __init__(self, message: Any = None, data: Any = None) -> None:
        super().__init__(message or _DISCONNECTED, data)


class ServiceSchemaError(_MessageError):
    """A service is declared wrongly."""

    default_type = "SERVICE_SCHEMA_ERROR"


class BrokerOptionsError(_MessageError):
    """A setting of the broker does not fit."""

    default_type = "BROKER_OPTIONS_ERROR"


class RemoteError(MoleculerError):
    """An error of a class that only the other node knows; `name` is that class's name."""

    def __init__(self, name: str, message: Any, code: Any = None, type: str | None = None, data: Any = None) -> None:
        super().__init__(message, code, type, data)
        self._name = name
        self.code = code  # kept as sent, also when missing or not a number (§6.1)


_DISCONNECTED = "The broker's transporter has disconnected. Please try again when a connection is reestablished."


def first_error(group: BaseExceptionGroup[Any]) -> BaseException:
    """The first real error of a group: callers expect one error, not a group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def text_of(error: BaseException) -> str:
    """What an error says. Classes of users may fail at that, which must not keep the error from callers."""
    try:
        return str(error)
    except Exception:
        return f"{type(error).__name__}, which cannot be printed"


def error_to_wire(error: BaseException, node_id: str) -> dict[str, Any]:
    """The `error` object of a RESPONSE (§6.1). `node_id` is the answering node's; an error that came from a third
    node keeps that node's id (§6.3)."""
    if not isinstance(error, MoleculerError):
        error = RemoteError(type(error).__name__, text_of(error), 500).with_traceback(error.__traceback__)
    wire: dict[str, Any] = {
        "name": error.name,
        "message": error.message,
        "nodeID": error.node_id or node_id,
        "retryable": bool(error.retryable),
        "stack": error.stack or _stack(error.name, error.message, error.__traceback__),
    }
    optional = {"code": error.code, "type": error.type, "data": error.data}
    return wire | {name: value for name, value in optional.items() if value is not None}


def error_from_wire(wire: object, sender: str) -> MoleculerError:
    """The error a peer sent, as an exception of the same class; RemoteError when the class is unknown here (§6.3).

    Never raises: a peer that sends `success: false` without a usable error gives a RemoteError that says so.
    """
    if not isinstance(wire, dict):
        wire = {"message": f"The node '{sender}' reported a failure without an error."}
    error = _recreate(str(wire.get("name") or "Error"), wire)
    error.retryable = bool(wire.get("retryable"))
    error.node_id = str(wire.get("nodeID") or sender)
    stack = wire.get("stack")
    error.stack = stack if isinstance(stack, str) and stack else None
    return error


def _recreate(name: str, wire: dict[str, Any]) -> MoleculerError:
    message, code, type_, data = (wire.get(member) for member in ("message", "code", "type", "data"))
    kind = _KINDS.get(name)
    if kind is None or (issubclass(kind, _DataError) and not isinstance(data, dict | None)):
        return RemoteError(name, message, code, type_, data)
    if issubclass(kind, _DataError):
        return kind(data)
    if issubclass(kind, _MessageError):
        return kind(message, data)
    return ValidationError(message, type_, data) if kind is ValidationError else kind(message, code, type_, data)


_KINDS = {
    name: kind
    for name, kind in globals().items()
    if isinstance(kind, type) and issubclass(kind, MoleculerError) and kind is not RemoteError and name[0] != "_"
}
"""The classes that keep their names on the wire."""


def _stack(name: str, message: object, traceback: TracebackType | None) -> str:
    """A stack in the form JS tools show. File lines are not read: an error reply must stay cheap."""
    frames = ((frame.f_code, line) for frame, line in walk_tb(traceback))
    places = [f"    at {code.co_qualname} ({code.co_filename}:{line})" for code, line in frames]
    return "\n".join([f"{name}: {message}", *places])


def publish_denied(subject: str) -> MoleculerError:
    """The error for what this node has no right to send."""
    return MoleculerError(
        f"The NATS user of this node has no permission to publish to '{subject}'. Grant it at the NATS server.",
        403,
        "PUBLISH_DENIED",
        {"subject": subject},
    )
