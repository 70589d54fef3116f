"""What the serializers share: their errors, and how a packet is made of decoded members (moleculer protocol §11)."""

from collections.abc import Callable, Mapping, Sized
from contextlib import suppress
from typing import Any, TypeGuard

import msgspec
from msgspec import Raw, Struct, UnsetType

from broker.errors import InvalidPacketDataError, MoleculerError
from broker.protocol.javascript import to_number
from broker.protocol.packets import COMMANDS, Address, Id, Objects, Packet
from broker.protocol.values import Rewrite, typed

LOGGED_CHARACTERS = 200
"""Of what a peer sent, in a log line: more than any name that makes sense."""

UNDECODABLE = (msgspec.MsgspecError, ValueError, RecursionError)
"""What msgspec and json raise for bytes they cannot read; UnicodeDecodeError and JSONDecodeError are ValueErrors."""

UNENCODABLE = (*UNDECODABLE, TypeError, OverflowError)

UNSERIALIZABLE = "UNSERIALIZABLE"
"""The type of the error for what has no form on the wire."""


def unserializable(value: object, name: str, error: Exception) -> MoleculerError:
    """The error for a user's value, or a packet with one in it, that the serializer `name` has no form for."""
    what = "Meta, headers or the data of an error" if isinstance(value, Packet) else "The value"
    message = f"{what} cannot be sent as {name}: {error}"
    return MoleculerError(message, 500, UNSERIALIZABLE, {"type": type(value).__name__})


def invalid(what: str, data: Sized, error: Exception) -> InvalidPacketDataError:
    """The error for bytes that are not a packet of the command `what`, or not a "value" within a good packet."""
    return InvalidPacketDataError({"command": what, "reason": reason(error), "size": len(data)})


def is_unreadable(error: Exception) -> TypeGuard[InvalidPacketDataError]:
    """Whether this is the error of `invalid` for a value, and not one that another node, or a service, has raised."""
    if not isinstance(error, InvalidPacketDataError) or error.node_id is not None:
        return False
    return isinstance(error.data, dict) and error.data.get("command") == "value"


def reason(error: Exception) -> str:
    """What is wrong with bytes, in words for people."""
    return "it is nested too deeply" if isinstance(error, RecursionError) else short(str(error))


def short(text: str) -> str:
    """The beginning of a text that may be a peer's, for a log line: one packet must not fill a disk."""
    return text if len(text) <= LOGGED_CHARACTERS else f"{text[:LOGGED_CHARACTERS]}…"


def chunk_of(value: Any, *, objects: bool) -> Any:
    """The chunk of a stream that a decoded value stands for, as JS nodes take it (§8.3). Raises ValueError."""
    if isinstance(value, dict) and value.get("type") == "Buffer":
        value = value.get("data")  # text in it is UTF-8, not base64
        if isinstance(value, list):
            with suppress(TypeError):
                return bytes(value)
        if not isinstance(value, str):
            raise ValueError("a Buffer has a list of numbers as its data")
        objects = False
    if objects or value is None or isinstance(value, bytes):
        return value
    if isinstance(value, str):  # a JS stream of text in binary mode
        return value.encode("utf-8", "surrogatepass")
    raise ValueError(f"a chunk of bytes was expected, not {type(value).__name__}")


def packet_of(kind: type[Packet], members: dict[str, Any]) -> Packet:
    """A packet from decoded members; params and data are put in as they are. Raises msgspec.ValidationError."""
    encoded = {name: members.pop(name) for name in ("params", "data") if name in members}
    packet: Packet = typed(members, kind)
    for name, value in encoded.items():
        setattr(packet, name, value)
    return packet


def lenient_packet_of(kind: type[Packet], members: dict[str, Any]) -> Packet:
    """The same of a packet that was refused: with an array where an object was expected or text for a number, which JS
    nodes let pass."""
    for item in msgspec.structs.fields(kind):
        if item.type in _LOOSE and item.encode_name in members:
            members[item.encode_name] = _LOOSE[item.type](members[item.encode_name])
    return packet_of(kind, members)


def _object(value: Any) -> Any:
    """What `Object.assign({}, value)` makes of an array; nothing of anything else that is not an object."""
    if isinstance(value, list):
        return {str(index): item for index, item in enumerate(value)}
    return value if isinstance(value, dict | None) else {}


def _number(value: Any) -> float | None:
    number = None if value is None else to_number(value)
    return 0.0 if number != number else number  # JS compares with 0, and NaN is not above it


_LOOSE: dict[Any, Callable[[Any], Any]] = {
    Objects | None: _object,
    Objects | UnsetType | None: _object,
    float | None: _number,
    bool | None: bool,
    list[Any] | UnsetType | None: lambda value: value or None,
}
"""By the type of a field."""


def rewritten(packet: Packet, names: Mapping[type[Packet], tuple[str, ...]], rewrite: Rewrite) -> Packet:
    """The packet with `rewrite` applied to the fields that `names` has for its kind; itself when nothing changes."""
    changes = {}
    for name in names[type(packet)]:
        value = getattr(packet, name)
        if value:
            new = rewrite(value)
            if new is not value:
                changes[name] = new
    return msgspec.structs.replace(packet, **changes) if changes else packet


def encoded_fields(kind: type[Struct]) -> dict[str, bool]:
    """The names of a type's members on the wire, and whether each is kept as its serializer encoded it."""
    return {field.encode_name: field.type is Raw for field in msgspec.structs.fields(kind)}


def _names(wanted: Callable[[msgspec.structs.FieldInfo], bool]) -> dict[type[Packet], tuple[str, ...]]:
    return {
        kind: tuple(field.name for field in msgspec.structs.fields(kind) if wanted(field)) for kind in COMMANDS.values()
    }


FIELDS: dict[type[Struct], dict[str, bool]] = {kind: encoded_fields(kind) for kind in COMMANDS.values()}
FIELDS[Address] = encoded_fields(Address)

USER_FIELDS = _names(lambda field: field.name in ("meta", "headers", "error", "services", "client", "metadata"))
"""What users put into a packet beside params and data."""

TEXT_FIELDS = _names(lambda field: field.type in (str, Id, str | None, str | UnsetType))
"""What is text and nothing else."""

PLAIN_FIELDS = _names(lambda field: field.type is not Raw)
"""Everything but params and data, which are encoded apart."""
