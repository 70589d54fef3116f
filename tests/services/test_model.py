"""Rows in every form that adopted tables hold, read in one meaning."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from services.environments_store.model import RECORD_FIELDS, Environment, encode_record, iso_date, read_row

ROW = {
    "id": "U",
    "environment": '{"uuid":"U"}',
    "environmentUuid": "U",
    "timestamp": Decimal("1748340000124"),
    "createdAt": "2026-11-22 12:44:33.093 +00:00",
    "updatedAt": "2026-11-22 12:44:34.093 +00:00",
    "deletedAt": None,
}
ENVIRONMENT = Environment("U", "U", b'{ "uuid":"U" }', 5, "created", "updated", None)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2026-11-22 12:44:33.093 +00:00", "2026-11-22T12:44:33.093Z"),
        ("2026-11-22 12:44:33.093000+00:00", "2026-11-22T12:44:33.093Z"),
        ("2026-11-22 12:44:33.0939", "2026-11-22T12:44:33.093Z"),
        ("2026-11-22T12:44:33.093Z", "2026-11-22T12:44:33.093Z"),
        ("2026-11-22t12:44:33z", "2026-11-22T12:44:33.000Z"),
        ("2026-11-22 12:44:33", "2026-11-22T12:44:33.000Z"),
        ("2026-11-22 12:44", "2026-11-22T12:44:00.000Z"),
        ("2026-11-22", "2026-11-22T00:00:00.000Z"),
        ("2026-11-22 19:44:33.5 +07:00", "2026-11-22T12:44:33.500Z"),
        ("2026-11-22T05:14:33-0730", "2026-11-22T12:44:33.000Z"),
        (1748340000124, "2025-05-27T10:00:00.124Z"),
        (1748340000124.9, "2025-05-27T10:00:00.124Z"),
        (1748340000, "2025-05-27T10:00:00.000Z"),
        (1748340000.5, "2025-05-27T10:00:00.500Z"),
        ("1748340000124", "2025-05-27T10:00:00.124Z"),
        (datetime(2026, 11, 22, 12, 44, 33, 93_999), "2026-11-22T12:44:33.093Z"),
        (datetime(2026, 11, 22, 19, 44, 33, tzinfo=timezone(timedelta(hours=7))), "2026-11-22T12:44:33.000Z"),
        (datetime(1, 1, 1, tzinfo=UTC), "0001-01-01T00:00:00.000Z"),
        (datetime.max, "9999-12-31T23:59:59.999Z"),
        (None, None),
        ("", None),
        ("yes", None),
        ("2026-13-01", None),
        (float("nan"), None),
        (1e300, None),
        (b"2026-11-22", None),
    ],
)
def test_dates_are_read_in_every_form_and_given_in_one(value: Any, expected: str | None) -> None:
    assert iso_date(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Decimal("1748340000124"), 1748340000124),
        (Decimal("1748340000124.9"), 1748340000124),
        (1748340000124, 1748340000124),
        (1748340000124.9, 1748340000124),
        ("1748340000124", 1748340000124),
        ("2025-05-27T10:00:00.124Z", 1748340000124),
        (None, 1795351474093),
        ("", 1795351474093),
        (Decimal("NaN"), 1795351474093),
        (Decimal("Infinity"), 1795351474093),
        (Decimal("1e30"), 1795351474093),
        (float("inf"), 1795351474093),
    ],
)
def test_a_timestamp_is_a_whole_number_and_else_the_date_of_the_last_write(value: Any, expected: int) -> None:
    timestamp = read_row({**ROW, "timestamp": value}).timestamp
    assert (timestamp, type(timestamp)) == (expected, int)


def test_a_deleted_row_always_has_a_date() -> None:
    assert read_row({**ROW, "deletedAt": "yes"}).deleted_at == "2026-11-22T12:44:34.093Z"
    assert read_row(ROW).deleted_at is None


def test_documents_are_bytes_whatever_the_database_gives() -> None:
    assert read_row(ROW).document == b'{"uuid":"U"}'
    assert read_row({**ROW, "environment": b"\xff"}).document == b"\xff"
    assert read_row({**ROW, "environment": None}).document is None


def test_a_missing_environment_uuid_is_the_id() -> None:
    assert read_row({**ROW, "environmentUuid": None}).environment_uuid == "U"


def test_a_record_holds_the_documents_own_bytes_and_its_keys_in_order() -> None:
    assert encode_record(ENVIRONMENT, "h") == (
        b'{"id":"U","environmentUuid":"U","environment":{ "uuid":"U" },"timestamp":5,"hash":"h",'
        b'"createdAt":"created","updatedAt":"updated","deletedAt":null}'
    )


@pytest.mark.parametrize("field", RECORD_FIELDS)
def test_a_record_holds_only_the_fields_that_are_asked_for(field: str) -> None:
    assert encode_record(ENVIRONMENT, "h", (field,)).startswith(b'{"%s":' % field.encode())
    assert encode_record(ENVIRONMENT, "h", ("hash", "id")) == b'{"id":"U","hash":"h"}'


def test_a_uuid_of_any_characters_is_escaped() -> None:
    environment = ENVIRONMENT._replace(id='a"b\\\n')
    assert encode_record(environment, None, ("id",)) == b'{"id":"a\\"b\\\\\\n"}'
