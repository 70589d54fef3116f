"""A row of `environments`, the same for both databases, and the record made of it.

Tables of the original contain dates and numbers in several forms, without constraints. The nearest valid value replaces
an unreadable one, so that `timestamp` is always a number and a deleted row always has a date.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, Literal, NamedTuple, get_args

import msgspec

from services.environments_store.database.base import Row

__all__ = ["RECORD_FIELDS", "Change", "Environment", "RecordField", "encode_record", "iso_date", "read_row"]

RecordField = Literal[
    "id", "environmentUuid", "environment", "timestamp", "hash", "createdAt", "updatedAt", "deletedAt"
]
RECORD_FIELDS: tuple[RecordField, ...] = get_args(RecordField)
"""The keys of a record, in their order."""

_MEMBERS = {key: b'"%b":%%b' % key.encode() for key in RECORD_FIELDS}
_RECORD = b"{%b}" % b",".join(_MEMBERS.values())
_encode = msgspec.json.Encoder().encode

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_MILLISECONDS_FROM = 1e11  # a smaller number of an unknown unit means seconds: 1e11 ms are in 1973, 1e11 s in 5138
_SAFE_INTEGER = 2**53
_SEQUELIZE_DATE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} \+00:00\Z", re.ASCII)
_DATE = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:[ T](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d+))?)?)?\s*(Z|[+-]\d\d(?::?\d\d)?)?\Z",
    re.ASCII | re.IGNORECASE,
)


class Environment(NamedTuple):
    """One row. `document` is None when it was not selected, or is NULL in the table."""

    id: str
    environment_uuid: str
    document: bytes | None
    timestamp: int
    created_at: str | None
    updated_at: str | None
    deleted_at: str | None


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """The event after a write. `hash` is null when the document is damaged."""

    type: Literal["created", "updated", "removed", "restored", "purged"]
    uuid: str
    hash: str | None
    timestamp: int


def read_row(row: Row) -> Environment:
    """Read a row of either database."""
    document = row["environment"]
    created_at, updated_at = iso_date(row["createdAt"]), iso_date(row["updatedAt"])
    deleted = row["deletedAt"]
    return Environment(
        id=row["id"],
        environment_uuid=row["environmentUuid"] or row["id"],
        document=document.encode() if isinstance(document, str) else document,
        timestamp=_timestamp(row["timestamp"], updated_at or created_at),
        created_at=created_at,
        updated_at=updated_at,
        deleted_at=None if deleted is None else iso_date(deleted) or updated_at or created_at,
    )


def encode_record(environment: Environment, hash: str | None, fields: Sequence[str] = RECORD_FIELDS) -> bytes:
    """The record as JSON, with the document's own bytes, and only the keys in `fields`."""
    texts = (
        _encode(environment.id),
        _encode(environment.environment_uuid),
        environment.document or b"null",
        b"%d" % environment.timestamp,
        _encode(hash),
        _encode(environment.created_at),
        _encode(environment.updated_at),
        _encode(environment.deleted_at),
    )
    if fields == RECORD_FIELDS:
        return _RECORD % texts
    return b"{%b}" % b",".join(
        _MEMBERS[key] % text for key, text in zip(RECORD_FIELDS, texts, strict=True) if key in fields
    )


def iso_date(value: Any) -> str | None:
    """ISO 8601 in UTC with milliseconds and `Z`, as JavaScript prints a date; None for what is not a date.

    Accepts PostgreSQL's values (without a zone they are UTC) and all forms found in SQLite files: Sequelize's
    (`2026-11-22 12:44:33.093 +00:00`), ISO 8601 and variants, and epoch milliseconds or seconds.
    """
    if isinstance(value, datetime) and value.tzinfo is UTC:  # as PostgreSQL's, most of the time
        return f"{value.isoformat(timespec='milliseconds')[:-6]}Z"
    if isinstance(value, str) and _SEQUELIZE_DATE.match(value):
        return f"{value[:10]}T{value[11:23]}Z"
    date = _date(value)
    return None if date is None else date.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _date(value: Any) -> datetime | None:
    try:
        if isinstance(value, datetime):
            return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        if isinstance(value, str):
            return _date_of_text(value.strip())
        if isinstance(value, int | float):
            milliseconds = value if abs(value) >= _MILLISECONDS_FROM else value * 1000
            return _EPOCH + int(milliseconds) * _MILLISECOND
    except (ValueError, OverflowError, ArithmeticError):
        pass
    return None


def _date_of_text(text: str) -> datetime | None:
    match = _DATE.match(text)
    if match is None:
        return _date(float(text))
    year, month, day, hour, minute, second, fraction, zone = match.groups()
    microsecond = int((fraction or "0")[:6].ljust(6, "0"))
    date = datetime(
        int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0), microsecond, _zone(zone)
    )
    return date.astimezone(UTC)


def _zone(text: str | None) -> timezone:
    if text is None or text in "Zz":
        return UTC
    digits = text[1:].replace(":", "")
    offset = timedelta(hours=int(digits[:2]), minutes=int(digits[2:] or 0))
    return timezone(-offset if text[0] == "-" else offset)


def _timestamp(value: Any, otherwise: str | None) -> int:
    """Integer milliseconds of a value that may be a fraction, NaN, text or NULL; else those of `otherwise`."""
    if type(value) is int and -_SAFE_INTEGER <= value <= _SAFE_INTEGER:
        return value
    try:
        number = int(Decimal(value)) if isinstance(value, str) else int(value)
        if abs(number) <= _SAFE_INTEGER:
            return number
    except (TypeError, ValueError, OverflowError, ArithmeticError):
        pass
    date = _date(value) if isinstance(value, str) else None
    date = date or _date(otherwise)
    return 0 if date is None else (date - _EPOCH) // _MILLISECOND
