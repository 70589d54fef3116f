"""JSONExt: JSON whose strings also carry dates, bytes, sets, big integers and more (protocol §11).

A mark is a prefix of a string value: `"[[DT]]1700000000000"`. A string that begins with `[[` itself is marked, too.
"""

import base64
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from msgspec import Raw, Struct

from broker.protocol.codecs.json import Codec, JSONCodec, ValueDecoder, json_text, parse_json
from broker.protocol.encoding import (
    PLAIN_FIELDS,
    TEXT_FIELDS,
    UNDECODABLE,
    UNENCODABLE,
    invalid_packet,
    invalid_value,
    reason,
    rewritten,
    unserializable_packet,
    unserializable_value,
)
from broker.protocol.packets import Address, Command, Packet
from broker.protocol.typed import TypedReader
from broker.protocol.values import SAFE_INTEGER, RegExp, in_utc, opened, rewriter

ESCAPED = "[[ES]]"

# A string value that begins with `[[`, however these are written. A quote that follows no backslash begins a string or
# ends one, and what follows an end is never a bracket that opens. Keys carry no marks.
_BEGIN = rb'(?<!\\)"(?=(?:\[|\\u005[bB]){2})'
_MARK = re.compile(_BEGIN)
_MARKED = re.compile(_BEGIN + rb'(?:[^"\\]++|\\.)*+"(?![ \t\r\n]*:)', re.DOTALL)


class JSONExtCodec(JSONCodec):
    """As JSON where nothing is marked.

    Date, Buffer, Set, Map, BigInt and RegExp arrive as datetime, bytes, set, dict, int and RegExp. Sent back, a Map is
    a plain object, and an int is a BigInt where a JavaScript number could not hold it.
    """

    name = "JSONExt"

    def decode(self, command: Command, data: bytes) -> Packet:
        packet = super().decode(command, data)
        if not has_marks(data):
            return packet
        try:
            revived = rewritten(packet, PLAIN_FIELDS, _revive)
        except UNDECODABLE as error:
            raise invalid_packet(command, data, reason(error)) from None
        for name in TEXT_FIELDS[type(packet)]:
            if isinstance(getattr(packet, name), str) and not isinstance(getattr(revived, name), str):
                raise invalid_packet(command, data, f"`{name}` is marked as something else than text")
        return revived

    def decode_address(self, data: bytes) -> Address | None:
        address = super().decode_address(data)
        if address is not None:
            address.sender = address.sender.removeprefix(ESCAPED)
            address.id = address.id.removeprefix(ESCAPED) if isinstance(address.id, str) else address.id
        return address

    def encode(self, packet: Packet) -> bytes:
        try:
            marked = rewritten(packet, PLAIN_FIELDS, _marked)
        except UNENCODABLE as error:
            raise unserializable_packet(packet, self.name, error) from error
        return super().encode(marked)

    def encode_value(self, value: object) -> Raw:
        try:
            return json_text(_marked(value))
        except UNENCODABLE as error:
            raise unserializable_value(value, self.name, error) from error

    encode_request = Codec.encode_request
    encode_answer = Codec.encode_answer

    def decode_value(self, raw: Raw) -> Any:
        try:
            value = super().decode_value(raw)
            return _revive(value) if has_marks(bytes(raw)) else value
        except UNDECODABLE as error:
            raise invalid_value(raw, error) from None

    def chunk_limit(self, room: int) -> int:
        return max(1, (room - len('"[[BF]]"')) // 4 * 3)

    def value_decoder(self, kind: type[Struct]) -> ValueDecoder:
        unmarked = super().value_decoder(kind)
        reader = TypedReader(kind)
        slices = msgspec.json.Decoder(reader.slices)

        def decode(raw: Raw) -> Any:
            if not has_marks(bytes(raw)):
                return unmarked(raw)
            return reader.read(reader.members(slices.decode(raw)), self.decode_value, _plain_text)

        return decode


def has_marks(text: bytes) -> bool:
    """Whether any string of a JSON text begins with `[[`."""
    return (b'"[[' in text or b"\\u005" in text) and _MARK.search(text) is not None


def escape(text: bytes) -> bytes:
    """JSON to JSONExt: strings that only look marked are marked as such."""
    return _MARKED.sub(lambda match: b'"[[ES]]' + match[0][1:], text) if has_marks(text) else text


def unescape(text: bytes, print_value: Callable[[str], bytes | None]) -> bytes:
    """JSONExt to JSON: what was escaped becomes what it was.

    `print_value` gives the JSON of any other marked string, None when the mark means nothing and the string stays.
    """

    def plain(match: re.Match[bytes]) -> bytes:
        literal = match[0]
        if literal.startswith(b'"[[ES]]'):
            return b'"' + literal[7:]
        value: str = json.loads(literal)
        if value.startswith(ESCAPED):
            return json.dumps(value[len(ESCAPED) :]).encode()
        printed = print_value(value)
        return literal if printed is None else printed

    return _MARKED.sub(plain, text) if has_marks(text) else text


def _marked_leaf(value: Any) -> Any:
    match value:
        case str():
            return ESCAPED + value if value.startswith("[[") else value
        case int():
            return value if -SAFE_INTEGER <= value <= SAFE_INTEGER else f"[[BI]]{value}"
        case Raw():
            return Raw(escape(bytes(value)))
        case bytes() | bytearray() | memoryview():
            return f"[[BF]]{base64.b64encode(value).decode()}"
        case datetime():
            return f"[[DT]]{(in_utc(value) - _EPOCH) // timedelta(milliseconds=1)}"
        case set() | frozenset():
            return f"[[ST]]{bytes(json_text(_marked(list(value)))).decode()}"
        case RegExp():
            return f"[[RE]]{value.flags}|{value.source}"
        case _:
            return _marked(opened(value, parse_json))


_marked = rewriter(frozenset({float, bool, type(None)}), _marked_leaf)


def _revived(text: Any) -> Any:
    """What a marked string stands for; itself when its mark is not known, as in JavaScript."""
    if type(text) is not str or not text.startswith("[["):
        return text
    mark, rest = text[:6], text[6:]
    match mark:
        case "[[ES]]":
            return rest
        case "[[DT]]":
            return _date(float(rest or 0))
        case "[[BI]]":
            return int(rest)
        case "[[BF]]":
            return _bytes(rest)
        case "[[MP]]":
            return _inner(rest)
        case "[[ST]]":
            return _set(_inner(rest))
        case "[[RE]]":
            flags, _, source = rest.partition("|")
            return RegExp(source, flags)
        case _:
            return text


_revive = rewriter(frozenset({int, float, bool, type(None)}), _revived)


def _inner(text: str) -> Any:
    return _revive(parse_json(Raw(text.encode("utf-8", "surrogatepass"))))


def _plain_text(raw: Raw) -> Raw:
    """JSONExt as the JSON text that the values in it have."""
    return Raw(unescape(bytes(raw), _print))


def _print(text: str) -> bytes | None:
    value = _revived(text)
    return None if value is text else bytes(json_text(value))


def _date(epoch_ms: float) -> datetime | float | None:
    """None for an invalid date; the number itself for a year that Python has not."""
    if epoch_ms != epoch_ms:
        return None
    try:
        return _EPOCH + timedelta(milliseconds=epoch_ms)
    except OverflowError:
        return epoch_ms


def _bytes(text: str) -> bytes:
    """Base64 as leniently as Node.js reads it."""
    kept = re.sub(r"[^A-Za-z0-9+/]", "", text.partition("=")[0].replace("-", "+").replace("_", "/"))
    if len(kept) % 4 == 1:
        kept = kept[:-1]
    return base64.b64decode(kept + "=" * (-len(kept) % 4))


def _set(values: Any) -> Any:
    """A set, or a list where an element has no hash."""
    if not isinstance(values, list):
        raise ValueError("a set holds an array")
    try:
        return set(values)
    except TypeError:
        return values


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
