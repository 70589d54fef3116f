"""The pure parts of the migration: its lock backoff, its outcomes, its plan and its index rules."""

import random

import pytest

from services.environments_store.database.failures import StatementFailure
from services.environments_store.defaults import MigrationBudgets
from services.environments_store.schema.index import next_action
from services.environments_store.schema.inspection import Column, Index, Inspection
from services.environments_store.schema.lock_backoff import LockBackoff
from services.environments_store.schema.names import BASE_COLUMNS, INDEX
from services.environments_store.schema.outcomes import outcome_of
from services.environments_store.schema.plan import obstacle_to_column, pending_steps, status_of

BUDGETS = MigrationBudgets()


def inspection(
    *, column: str | None = "timestamp with time zone", index: Index | None = None, **rest: object
) -> Inspection:
    columns = tuple(Column(name, "text") for name in BASE_COLUMNS)
    if column is not None:
        columns = (*columns, Column("deletedAt", column))
    indexes = () if index is None else (index,)
    return Inspection(
        dialect="postgresql",
        schema="public",
        table="environments",
        columns=columns,
        indexes=indexes,
        **rest,  # type: ignore[arg-type]  # any field
    )


def test_lock_timeouts_grow_from_50_to_250_ms_and_stay_there() -> None:
    backoff = LockBackoff(BUDGETS, lambda: 0.0, random.Random(1))
    assert [backoff.next_lock_timeout_ms() for _ in range(6)] == [50, 100, 200, 250, 250, 250]
    backoff.reset()
    assert backoff.next_lock_timeout_ms() == 50


def test_readers_keep_four_fifths_of_the_time_and_pauses_stay_within_their_bounds() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 # a failure can be repeated with it
    now = 0.0
    backoff = LockBackoff(BUDGETS, lambda: now, random.Random(seed))
    for _ in range(2000):
        lock_timeout_s = backoff.next_lock_timeout_ms() / 1000
        pause_s = backoff.pause_s()
        assert pause_s >= 5 * lock_timeout_s
        assert pause_s <= (BUDGETS.sleep_patient_s if now < BUDGETS.patience_s else BUDGETS.sleep_max_s)
        now += lock_timeout_s + pause_s
    assert now > BUDGETS.patience_s


@pytest.mark.parametrize(
    ("state", "outcome"),
    [
        ("55P03", "blocked"),
        ("57014", "blocked"),
        ("42701", "peer"),
        ("42501", "forbidden"),
        ("25006", "read-only"),
        ("53100", "exhausted"),
        ("54011", "unsupported"),
        ("XX000", "collided"),
        ("25001", "failed"),
        ("SQLITE_BUSY_SNAPSHOT", "blocked"),
        ("SQLITE_READONLY_DIRECTORY", "read-only"),
        ("SQLITE_IOERR_WRITE", "exhausted"),
        ("SQLITE_CORRUPT", "failed"),
    ],
)
def test_each_refusal_has_its_outcome(state: str, outcome: str) -> None:
    assert outcome_of(StatementFailure("refused", sqlstate=state)) == outcome


def test_a_lost_connection_is_lost_whatever_it_said_last() -> None:
    assert outcome_of(StatementFailure("gone", sqlstate="55P03", lost=True)) == "lost"


@pytest.mark.parametrize(
    ("type_name", "soft_delete", "zone"),
    [
        ("timestamp with time zone", True, True),
        ("timestamp(3) with time zone", True, True),
        ("timestamp without time zone", True, False),
        ("timestamp(6) without time zone", True, False),
        ("text", False, True),
        ("bigint", False, True),
    ],
)
def test_only_timestamps_are_used(type_name: str, soft_delete: bool, zone: bool) -> None:
    found = inspection(column=type_name)
    assert (found.soft_delete, found.deleted_at_zone) == (soft_delete, zone)
    obstacle = obstacle_to_column(found)
    assert (obstacle is None) == soft_delete
    assert obstacle is None or type_name in obstacle.message


def test_a_read_only_database_keeps_soft_delete_but_is_degraded() -> None:
    status = status_of(inspection(standby=True))
    assert (status.state, status.reason, status.soft_delete, status.writable) == ("degraded", "read-only", True, False)


def test_the_steps_of_a_missing_table_are_all_pending() -> None:
    found = Inspection(dialect="postgresql", schema="public", table="environments", kind=None)
    assert pending_steps(found) == ("table", "column", "index")


@pytest.mark.parametrize(
    ("found", "kind", "name"),
    [
        (inspection(index=Index(name="any", first_column="deletedAt")), "none", "any"),
        (inspection(), "create", INDEX),
        (inspection(index=Index(name=INDEX, first_column="deletedAt", valid=False)), "drop", INDEX),
        (inspection(index=Index(name=INDEX, first_column="deletedAt", valid=False), maintained=True), "wait", INDEX),
        (inspection(index=Index(name="theirs", first_column="deletedAt", valid=False)), "create", INDEX),
        (inspection(taken_names=frozenset({INDEX})), "create", f"{INDEX}1"),
        (inspection(taken_names=frozenset({INDEX, f"{INDEX}1"})), "create", f"{INDEX}2"),
        (inspection(can_index=False), "leave", INDEX),
        (inspection(can_alter=False), "leave", INDEX),
        (inspection(kind="p"), "leave", INDEX),
        (inspection(version=140003, rows_estimate=10), "create-blocking", INDEX),
        (inspection(version=140003, rows_estimate=10_000_000), "leave", INDEX),
        (inspection(version=140004, rows_estimate=10_000_000), "create", INDEX),
    ],
)
def test_what_is_found_decides_what_the_index_needs(found: Inspection, kind: str, name: str) -> None:
    action = next_action(found, BUDGETS)
    assert (action.kind, action.name) == (kind, name)
