"""The demo proves what it prints: a service that does something else fails it."""

import msgspec
import pytest

from broker import Context, action
from services.environments_store import demo
from services.environments_store.demo import Step, run_demo
from services.environments_store.service import EnvironmentsStore, FieldsOrText

pytestmark = pytest.mark.anyio


class Forgetful(EnvironmentsStore):
    """Says that it deleted, and does not."""

    @action
    async def remove(self, ctx: Context, uuid: str) -> dict[str, bool]:
        return {"success": True}


class Odd(EnvironmentsStore):
    """Answers in another form."""

    @action(name="listDeleted")
    async def list_deleted(
        self, ctx: Context, limit: int | None = None, after: str | None = None, fields: FieldsOrText = None
    ) -> msgspec.Raw:
        return msgspec.Raw(b"1")


async def outcome() -> tuple[bool, list[Step], list[str]]:
    steps: list[Step] = []
    lines: list[str] = []
    return await run_demo(lines.append, steps.append), steps, lines


async def test_a_working_service_passes_every_step() -> None:
    passed, steps, lines = await outcome()
    assert passed
    assert [step.number for step in steps] == [1, 2, 3, 4, 5, 6]
    assert lines == ["🔄 Adding deletedAt column to environments table", "✅ deletedAt column added successfully"]


async def test_a_service_that_does_not_delete_fails_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "EnvironmentsStore", Forgetful)
    passed, steps, _ = await outcome()
    assert not passed
    assert [step.number for step in steps if not step.holds] == [3, 4]


async def test_a_service_that_answers_in_another_form_fails_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "EnvironmentsStore", Odd)
    passed, steps, _ = await outcome()
    assert not passed
    assert 4 in [step.number for step in steps if not step.holds]
