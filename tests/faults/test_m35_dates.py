"""Scenario 35: dates in every form that a SQLite file may hold: listed rightly, and never purged by accident."""

from typing import Any

import pytest

from services.environments_store.defaults import OperationLimits
from services.environments_store.operations.rows import look_at_rows
from tests.support.operations import exported, purge, shape_of
from tests.support.store import Bench

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("bench", ["sqlite"], indirect=True)]

OLD = "2025-05-27T08:54:47.123Z"
DATES: dict[str, tuple[Any, str]] = {
    "as the original writes it": ("2025-05-27 08:54:47.123 +00:00", OLD),
    "without a space": ("2025-05-27 08:54:47.123+00:00", OLD),
    "with microseconds": ("2025-05-27 08:54:47.123999+00:00", OLD),
    "ISO": ("2025-05-27T08:54:47.123Z", OLD),
    "in another zone": ("2025-05-27 15:54:47.123 +07:00", OLD),
    "without a zone": ("2025-05-27 08:54:47.123", OLD),
    "without a fraction": ("2025-05-27 08:54:47", "2025-05-27T08:54:47.000Z"),
    "a day": ("2025-05-27", "2025-05-27T00:00:00.000Z"),
}
NEVER_PURGED: dict[str, tuple[Any, str]] = {
    "milliseconds": (1748336087123, OLD),
    "seconds": (1748336087, "2025-05-27T08:54:47.000Z"),
    "seconds with a fraction": (1748336087.123, OLD),
    "a number that is a Julian day": (2450000, "1970-01-29T08:33:20.000Z"),
    "the future": ("2999-01-01 00:00:00.000 +00:00", "2999-01-01T00:00:00.000Z"),
}
TEXTS = {"a time alone": "08:54:47", "a word": "yesterday", "the word that SQLite takes for a date": "now"}


async def put(bench: Bench, uuid: str, date: object) -> None:
    await bench.create(uuid)
    await bench.run("UPDATE environments SET deletedAt = $1 WHERE id = $2", date, uuid)


async def test_m35_every_form_is_read_as_the_same_instant(bench: Bench) -> None:
    forms = {**DATES, **NEVER_PURGED}
    for uuid, (date, _) in forms.items():
        await put(bench, uuid, date)
    shown = {record["id"]: record["deletedAt"] for record in await bench.list_deleted()}
    assert shown == {uuid: instant for uuid, (_, instant) in forms.items()}
    assert await bench.list() == []


async def test_m35_old_dates_are_purged_and_numbers_words_and_the_future_never(bench: Bench) -> None:
    for uuid, (date, _) in {**DATES, **NEVER_PURGED}.items():
        await put(bench, uuid, date)
    for uuid, date in TEXTS.items():
        await put(bench, uuid, date)
    work = await purge(bench, 0)
    purged = {change.uuid async for changes in work.batches() for change in changes}
    assert purged == set(DATES)
    assert {record["id"] for record in await bench.list_deleted()} == {*NEVER_PURGED, *TEXTS}


async def test_m35_what_is_never_purged_is_named_with_a_remedy(bench: Bench) -> None:
    for uuid, (date, _) in NEVER_PURGED.items():
        await put(bench, uuid, date)
    await put(bench, "microseconds", 1748336087123456)
    findings = await look_at_rows(bench.database, shape_of(bench), OperationLimits())
    assert {finding.subject: finding.message.split(" ")[0] for finding in findings} == {
        "unreadable-date": "5",
        "future-date": "1",
    }
    remedy = next(finding.remedy for finding in findings if finding.subject == "unreadable-date")
    assert remedy is not None
    before = {record["id"]: record["deletedAt"] for record in await bench.list_deleted()}
    await bench.run(remedy.split(";")[0])
    assert {record["id"]: record["deletedAt"] for record in await bench.list_deleted()} == before
    findings = await look_at_rows(bench.database, shape_of(bench), OperationLimits())
    assert {finding.subject: finding.message.split(" ")[0] for finding in findings} == {
        "unreadable-date": "2",  # microseconds, and what may be anything
        "future-date": "1",
    }


async def test_m35_a_forecast_compares_instants_whatever_their_form(bench: Bench) -> None:
    await put(bench, "oldest", "2025-06-01 02:00:00.000 +07:00")
    await put(bench, "between", "2025-06-01T08:00:00.000Z")
    await put(bench, "newest", "2025-06-01 09:00:00.000 +00:00")
    forecast = await (await purge(bench, 90)).forecast()
    assert forecast.months == {"2025-05": 1, "2025-06": 2}
    assert (forecast.oldest, forecast.newest) == ("2025-05-31T19:00:00.000Z", "2025-06-01T09:00:00.000Z")


async def test_m35_an_export_writes_every_form_as_one(bench: Bench) -> None:
    for uuid, (date, _) in DATES.items():
        await put(bench, uuid, date)
    lines = await exported(bench, "deleted")
    assert sum(OLD.encode() in line for line in lines) == 6
