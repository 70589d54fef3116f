"""JSONExt: JSON whose strings also carry dates, bytes, sets, big integers and more (protocol §11).

A mark is a prefix of a string value: `"[[DT]]1700000000000"`. A string that begins with `[[` itself is marked, too.
"""

import base64
import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from msgspec import Raw, Struct

from broker.protocol.codecs.base import Codec, ValueDecoder
from broker.protocol.codecs.json import JSONCodec, json_text, parse_json
from broker.protocol.encoding import PLAIN_FIELDS, TEXT_FIELDS, rewritten
from broker.protocol.packets import Packet
from broker.protocol.values import EPOCH, SAFE_INTEGER, RegExp, as_date, as_set, in_utc, opened, rewriter

ESCAPED = "[[ES]]"

# A string value that begins with `[[`, however these are written. A quote that follows no backslash begins a string or
# ends one, and what follows an end is never a bracket that opens. Keys carry no marks.
_BEGIN = rb'(?<!\\)"(?=(?:\[|\\u005[bB]){2})'
_MARK = re.compile(_BEGIN)
_MARKED = re.compile(_BEGIN + rb'(?:[^"\\]++|\\.)*+"(?![ \t\r\n]*:)', re.DOTALL)


def has_marks(text: bytes) -> bool:
    """Whether any string of a JSON text begins with `[[`."""
    return (b'"[[' in text or b"\\u005" in text) and _MARK.search(text) is not None


def escape(text: bytes) -> bytes:
    """JSON to JSONExt: strings that only look marked are marked as such."""
    return _MARKED.sub(lambda match: b'"[[ES]]' + match[0][1:], text) if has_marks(text) else text


def unescape(text: bytes) -> bytes:
    """JSONExt to JSON: escaped strings are as they were, byte for byte, and other marks become JSON of their values."""

    def plain(match: re.Match[bytes]) -> bytes:
        literal = match[0]
        if literal.startswith(b'"[[ES]]'):
            return b'"' + literal[7:]
        string = json.loads(literal)
        value = _revived(string)
        return literal if value is string else bytes(json_text(value))

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
            return f"[[DT]]{(in_utc(value) - EPOCH) // timedelta(milliseconds=1)}"
        case set() | frozenset():
            return f"[[ST]]{bytes(json_text(_marked(list(value)))).decode()}"
        case RegExp():
            return f"[[RE]]{value.flags}|{value.source}"
        case _:
            return _marked(opened(value))


_marked = rewriter(frozenset({float, bool, type(None)}), _marked_leaf)


def _revived(text: Any) -> Any:
    """What a marked string stands for; itself when its mark is not known, as in JavaScript."""
    meaning = _MEANINGS.get(text[:6]) if type(text) is str else None
    return text if meaning is None else meaning(text[6:])


_revive = rewriter(frozenset({int, float, bool, type(None)}), _revived)


def _inner(text: str) -> Any:
    return _revive(parse_json(Raw(text.encode("utf-8", "surrogatepass"))))


def _bytes(text: str) -> bytes:
    """Base64 as leniently as Node.js reads it."""
    kept = re.sub(r"[^A-Za-z0-9+/]", "", text.partition("=")[0].replace("-", "+").replace("_", "/"))
    return base64.b64decode(kept[: len(kept) - (len(kept) % 4 == 1)] + "==")


def _set(text: str) -> Any:
    values = _inner(text)
    if not isinstance(values, list):
        raise ValueError("a set holds an array")
    return as_set(values)


def _reg_exp(text: str) -> RegExp:
    flags, _, source = text.partition("|")
    return RegExp(source, flags)


_MEANINGS: dict[str, Callable[[str], Any]] = {
    ESCAPED: str,
    "[[DT]]": lambda text: as_date(float(text or 0)),
    "[[BI]]": int,
    "[[BF]]": _bytes,
    "[[MP]]": _inner,
    "[[ST]]": _set,
    "[[RE]]": _reg_exp,
}


def _load(data: Raw) -> Any:
    value = parse_json(data)
    return _revive(value) if has_marks(bytes(data)) else value


class JSONExtCodec(JSONCodec):
    """As JSON where nothing is marked.

    Date, Buffer, Set, Map, BigInt and RegExp arrive as datetime, bytes, set, dict, int and RegExp. Sent back, a Map is
    a plain object, and an int is a BigInt where a JavaScript number could not hold it.
    """

    name = "JSONExt"

    def __init__(self) -> None:
        super().__init__()
        self._decoders = {command: _reviving(decode) for command, decode in self._decoders.items()}
        self._load, self._prepare, self._user_fields = _load, _marked, PLAIN_FIELDS

    encode_with = Codec.encode_with
    encode_value = Codec.encode_value
    decode_value = Codec.decode_value

    def _split(self, data: bytes | Raw, fields: Mapping[str, bool]) -> dict[str, Any]:
        members = super()._split(data, fields)
        return {name: member if fields[name] else _revive(member) for name, member in members.items()}

    def _text(self, encoded: Raw) -> Raw:
        return Raw(unescape(bytes(encoded)))

    def chunk_limit(self, room: int) -> int:
        return max(1, (room - len('"[[BF]]"')) // 4 * 3)

    def value_decoder(self, kind: type[Struct]) -> ValueDecoder:
        unmarked, marked = super().value_decoder(kind), Codec.value_decoder(self, kind)

        def decode(raw: Raw) -> Any:
            return marked(raw) if has_marks(bytes(raw)) else unmarked(raw)

        return decode


def _reviving(decode: Callable[[bytes], Packet]) -> Callable[[bytes], Packet]:
    """A decoder of packets that reads marks. Raises ValueError when text turns out to be something else."""

    def revive(data: bytes) -> Packet:
        packet = decode(data)
        if not has_marks(data):
            return packet
        revived = rewritten(packet, PLAIN_FIELDS, _revive)
        for name in TEXT_FIELDS[type(packet)]:
            if isinstance(getattr(packet, name), str) and not isinstance(getattr(revived, name), str):
                raise ValueError(f"`{name}` is marked as something else than text")
        return revived

    return revive
