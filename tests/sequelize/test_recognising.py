"""`migrate check` names the original from before soft delete while it is connected, and not its last generation."""

import pytest

from services.environments_store.operations.checklist import run_checklist
from services.environments_store.schema.check import look
from tests.support.original import Generation, Originals
from tests.support.postgres import PostgresDatabase
from tests.support.shapes import postgres_sql

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("generation", "shape", "subject", "state"),
    [
        ("B", "p_c", "old-generation", "warning"),
        ("C", "p_dmig", "old-generation", "warning"),
        ("D", "p_dmig", "other-program", "ok"),
    ],
)
async def test_the_generation_of_a_connected_original_is_told(
    generation: Generation,
    shape: str,
    subject: str,
    state: str,
    original_process: Originals,
    postgres_database: PostgresDatabase,
) -> None:
    postgres_database.run_sql(postgres_sql(shape))
    original = await original_process.open(generation, postgres_database.url)
    await original.find_all()
    checklist = await run_checklist(await look(postgres_database.url))
    assert {check.name: check.state for check in checklist.checks}["old generations"] == state
    found = [finding.message for finding in checklist.findings if finding.subject == subject]
    assert "'without a name' of role \"postgres\" from 127.0.0.1" in found[0]
