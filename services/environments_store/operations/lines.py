"""Conversion between a line of NDJSON and a row, preserving the document's bytes.

A line is a record as the actions return it. A line cannot contain a document's line breaks or surrounding space: each
break is exported as a space, and `environmentLayout` records where the breaks were (earlier exports have the exact text
in `environmentText` as well).

An import needs only `environment`; missing members are generated as by `create`, and `hash` is ignored. A document by
itself and the form of Mockoon's samples are accepted too.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec

from broker.errors import MoleculerError
from broker.protocol.members import load, split_object
from services.environments_store.defaults import StoreLimits
from services.environments_store.document import check_document, check_uuid, with_uuid
from services.environments_store.model import Environment, encode_record, iso_date
from services.environments_store.queries.transfer import StoredRow

__all__ = ["NotJsonError", "export_pieces", "import_rows", "layout_of"]

_SPACE = b" \t\r\n"
_STEP = 65_536  # bytes searched at a time for the end of a document
_OPENING = re.compile(rb"[ \t\r\n]*")
_BREAK = re.compile(rb"[\r\n]")
_BREAKS = bytes.maketrans(b"\r\n", b"  ")


class _Layout(msgspec.Struct, rename="camel"):
    """The space around a document and the line breaks in it, each as the distance from the previous one or the start,
    negative for a carriage return. `bytes` is the document's length, which detects a document edited since."""

    bytes: int
    before: str = ""
    breaks: list[int] = []
    after: str = ""


EXPECTED = (
    "expected a record {environment: {…}}, an environment by itself, or Mockoon's {source, data: [{type, item}]}, each"
    " on a line of its own or as the whole file"
)


class NotJsonError(ValueError):
    """The text is not JSON, or not complete."""


class _Item(msgspec.Struct):
    type: str
    item: msgspec.Raw = msgspec.Raw(b"")


class _Line(msgspec.Struct, rename="camel"):
    """The members that an import reads; others are ignored."""

    environment: msgspec.Raw = msgspec.Raw(b"")
    environment_text: Any = None
    environment_layout: Any = None
    id: Any = None
    environment_uuid: Any = None
    timestamp: Any = None
    created_at: Any = None
    updated_at: Any = None
    deleted_at: Any = None
    uuid: msgspec.Raw = msgspec.Raw(b"")
    name: msgspec.Raw = msgspec.Raw(b"")
    routes: msgspec.Raw = msgspec.Raw(b"")
    data: msgspec.Raw = msgspec.Raw(b"")


class _Document(msgspec.Struct):
    uuid: Any = ""


_NOTHING = _Line()
_DECODER = msgspec.json.Decoder(_Line)
_DOCUMENT_DECODER = msgspec.json.Decoder(_Document)
_NAMES = {field.name: field.encode_name for field in msgspec.structs.fields(_Line)}


def layout_of(document: bytes | None) -> bytes:
    """The member that records line breaks and surrounding space; empty for a document without either."""
    if document is None:
        return b""
    start, end = _inner(document)
    if end - start == len(document) and b"\n" not in document and b"\r" not in document:
        return b""
    layout = _Layout(end - start, document[:start].decode(), [], document[end:].decode())
    last = start
    for found in _BREAK.finditer(document, start, end):
        distance, last = found.start() - last, found.start()
        layout.breaks.append(distance if document[last] == ord("\n") else -distance)
    return b',"environmentLayout":' + msgspec.json.encode(layout)


def export_pieces(environment: Environment, hash: str | None, layout: bytes, size: int) -> Iterator[bytes]:
    """The record as a line with its line end, in pieces, so that a large document is never copied whole."""
    head, tail = encode_record(environment._replace(document=b"\0"), hash).split(b"\0")
    document = environment.document or b"null"
    start, end = _inner(document)
    yield head
    for at in range(start, end, size):
        piece = document[at : min(at + size, end)]
        # JSON strings have no line breaks, and elsewhere a space means the same.
        yield piece.translate(_BREAKS) if layout else piece
    yield b"%s%s}\n" % (tail[:-1], layout)


def _inner(document: bytes) -> tuple[int, int]:
    """The start and end of the document without surrounding space."""
    start, end = _OPENING.match(document), len(document)
    while end:
        before = max(0, end - _STEP)
        if rest := document[before:end].rstrip(_SPACE):
            end = before + len(rest)
            break
        end = before
    return start.end() if start else 0, end


def import_rows(
    text: bytes, made: Callable[[int], str], limits: StoreLimits, *, checked: bool = False
) -> list[StoredRow]:
    """The rows of a line or of a whole file. `made` generates the uuid of the n-th document without one; with `checked`
    the documents were validated before, and are not validated again.

    Raises NotJsonError, and ValueError with the reason for what cannot be imported.
    """
    members = _members(text)
    if members.environment or members.environment_text is not None:
        return [_row(members, lambda: made(0), limits, checked)]
    if members.uuid or members.routes or members.name:
        return [_row(_Line(environment=msgspec.Raw(text.strip(_SPACE))), lambda: made(0), limits, checked)]
    if not members.data:
        raise ValueError(f"it has no 'environment'; {EXPECTED}")
    rows = []
    for number, document in enumerate(_items(members.data)):
        try:
            rows.append(_row(_Line(environment=document), partial(made, number), limits, checked))
        except ValueError as error:
            raise ValueError(f"data[{number}]: {error}") from None
    return rows


def _row(members: _Line, made: Callable[[], str], limits: StoreLimits, checked: bool) -> StoredRow:
    raw = bytes(members.environment)
    if members.environment_text is not None:
        if not isinstance(members.environment_text, str):
            raise ValueError("its 'environmentText' is not text")
        raw = members.environment_text.encode()
    elif members.environment_layout is not None:
        raw = _laid_out(raw, members.environment_layout)
    uuid = members.id
    if not checked or uuid is None:
        own = _document_uuid(raw, limits, checked)
        if uuid is None and own == "":
            uuid = made()
            raw = with_uuid(raw, uuid)
        elif uuid is None:
            uuid = own
    created = _date("createdAt", members.created_at) or _now()
    updated = _date("updatedAt", members.updated_at) or created
    id = _uuid("id", uuid, limits)
    other = members.environment_uuid
    return StoredRow(
        id=id,
        document=raw.decode(),
        environment_uuid=id if other is None else _uuid("environmentUuid", other, limits),
        timestamp=_timestamp(members.timestamp, updated),
        created_at=created,
        updated_at=updated,
        deleted_at=_date("deletedAt", members.deleted_at),
    )


def _members(text: bytes) -> _Line:
    try:
        return _DECODER.decode(text)
    except msgspec.ValidationError:
        raise ValueError(f"it is not a JSON object; {EXPECTED}") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        pass
    # Half of a surrogate pair, or deep nesting: both are documents that a database may hold.
    try:
        members = split_object(text)
        values: dict[str, Any] = {}
        for name, wire in _NAMES.items():
            if wire in members:
                raw = isinstance(getattr(_NOTHING, name), msgspec.Raw)
                values[name] = msgspec.Raw(members[wire]) if raw else load(members[wire])
    except (ValueError, RecursionError) as error:
        raise NotJsonError(f"it is not valid JSON: {error or 'nested too deep'}; {EXPECTED}") from None
    return _Line(**values)


def _items(data: msgspec.Raw) -> list[msgspec.Raw]:
    """The documents in the form of mockoon's samples."""
    try:
        items = msgspec.json.decode(data, type=list[_Item])
    except msgspec.ValidationError:
        raise ValueError(f"its 'data' is of another form; {EXPECTED}") from None
    except (msgspec.DecodeError, RecursionError):
        raise ValueError("its 'data' is nested too deep, or has half of a surrogate pair") from None
    for number, one in enumerate(items):
        if one.type != "environment" or not one.item:
            raise ValueError(f"data[{number}] is of the type '{one.type}', and only environments are imported")
    return [one.item for one in items]


def _laid_out(raw: bytes, value: Any) -> bytes:
    """The document with its line breaks; as it is when it was edited since."""
    try:
        layout = msgspec.convert(value, _Layout)
    except msgspec.ValidationError:
        raise ValueError("its 'environmentLayout' is not that of an export") from None
    text, position = bytearray(raw), 0
    for distance in layout.breaks:
        position += abs(distance)
        if len(text) != layout.bytes or position >= len(text) or text[position] != ord(" "):
            return raw
        text[position] = ord("\n" if distance > 0 else "\r")
    return b"%s%s%s" % (layout.before.encode(), text, layout.after.encode())


def _document_uuid(raw: bytes, limits: StoreLimits, checked: bool) -> Any:
    if checked:  # in a transaction, which a second look at a large document would keep waiting
        with suppress(msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return _DOCUMENT_DECODER.decode(raw).uuid
    try:
        return check_document(raw, limits).uuid
    except MoleculerError as error:
        raise ValueError(_reason(error)) from None


def _uuid(field: str, value: Any, limits: StoreLimits) -> str:
    try:
        return check_uuid(value, field, limits)
    except MoleculerError as error:
        raise ValueError(_reason(error)) from None


def _reason(error: MoleculerError) -> str:
    text: str = error.data[0]["message"]
    return text[:1].lower() + text[1:].rstrip(".")


def _date(field: str, value: Any) -> str | None:
    if value is None:
        return None
    date = iso_date(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
    try:
        # Text in the original's own form is not parsed, so its numbers may still be impossible.
        return date if date is not None and datetime.fromisoformat(date) else _refuse(field, value)
    except ValueError:
        return _refuse(field, value)


def _refuse(field: str, value: Any) -> str:
    raise ValueError(f"its '{field}' is not a date: {value!r}")


def _timestamp(value: Any, updated: str) -> int:
    if value is None:
        return round(datetime.fromisoformat(updated).timestamp() * 1000)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 2**53:
        raise ValueError(f"its 'timestamp' is not a number of milliseconds: {value!r}")
    return int(value)


def _now() -> str:
    now = datetime.fromtimestamp(time.time(), UTC)
    return now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
