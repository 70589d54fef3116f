"""docs/operations.md shows real output: each of its commands is run in order, and its output compared.

    python -m tests.test_operations_page

writes the page again, with the current output.
"""

import re
import tempfile
from pathlib import Path

from tests.support.nats_server import NatsServer
from tests.support.page import run_page
from tests.support.postgres import PostgresDatabase, PostgresServer
from tests.support.processes import REPOSITORY

PAGE = REPOSITORY / "docs" / "operations.md"
GUIDE_HEADINGS = [
    "Automatic migration (recommended)",
    "Manual migration (for DBAs)",
    "1. Backup database",
    "2. Test migration on staging",
    "3. Plan downtime (if needed)",
    "Post-migration verification",
    "3. Test soft delete functionality",
    "Rollback plan (emergency)",
    "Monitoring",
    "Check migration status in application logs",
    "Database monitoring queries",
    "Troubleshooting",
    "Migration fails during startup",
    "Performance issues after migration",
    "Need to clean up old soft-deleted records",
]
# What differs from run to run.
VOLATILE = [
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d{3})?(Z|\+00)?", "<date>"),
    (r"\d{8}[_-]\d{6}", "<stamp>"),
    (r'"timestamp": \d{13}', '"timestamp": <milliseconds>'),
    (r'"hash": "[0-9a-f]{40}"', '"hash": "<hash>"'),
    (r"built in [\d.]+ s", "built in <seconds> s"),
    (r"'[\w.-]+' serves", "'<node>' serves"),
    (r"[\w.-]+/broker\b", "<node>/broker"),
    (r"\bpid \d+", "pid <pid>"),
    (r"(backup_before_migration\.dump +)\d+( +)", r"\1<bytes>\2"),
    (r" {2,}", "  "),  # columns are as wide as their contents
]


def steady(page: str) -> list[str]:
    for pattern, name in VOLATILE:
        page = re.sub(pattern, name, page)
    return page.splitlines()


def test_every_command_prints_what_the_page_shows(
    postgres_database: PostgresDatabase, nats_server: NatsServer, tmp_path: Path
) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert steady(run_page(page, postgres_database, nats_server.url, tmp_path)) == steady(page)


def test_every_heading_of_the_guide_is_there() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [heading for heading in GUIDE_HEADINGS if not re.search(rf"^##+ .*{re.escape(heading)}$", page, re.M)] == []


def test_the_page_contains_no_password() -> None:
    assert "superuser-password" not in PAGE.read_text(encoding="utf-8")


def main() -> None:
    """Write the page with the output of a run."""
    with tempfile.TemporaryDirectory() as folder, PostgresServer() as server, NatsServer(Path(folder) / "nats") as nats:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(run_page(page, PostgresDatabase(server), nats.url, Path(folder)), encoding="utf-8")


if __name__ == "__main__":
    main()
