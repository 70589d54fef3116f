"""The page docs/migrations.md, made from the tests and the budgets: `python -m tests.migrations` writes it again."""

import ast
import itertools
from dataclasses import dataclass

from services.environments_store.defaults import DatabaseSettings, MigrationBudgets
from tests.support.numbered import TESTS, NumberedTest, numbered_tests

__all__ = ["PAGE", "Scenario", "page", "scenarios"]

PAGE = TESTS.parent / "docs" / "migrations.md"
HEAD = TESTS / "golden" / "migrations.md"
SCENARIOS = TESTS / "golden" / "migrations.tsv"
TABLE_HEAD = "| # | what happens, and the outcome | tests |\n|--:|---|---|\n"


@dataclass(frozen=True)
class Scenario:
    """One fault, or one promise, of the migration or of the data behind it."""

    number: int
    dialect: str
    text: str


def scenarios() -> list[Scenario]:
    """All scenarios, in order."""
    lines = (line.split("\t") for line in SCENARIOS.read_text(encoding="utf-8").splitlines())
    return [Scenario(int(number), dialect, text) for number, dialect, text in lines]


def page() -> str:
    """The page as it should be."""
    tests = numbered_tests("m")
    dialects = itertools.groupby(scenarios(), key=lambda scenario: scenario.dialect)
    return _head() + "".join(_section(dialect, list(group), tests) for dialect, group in dialects)


def _head() -> str:
    """The text for a DBA, with the numbers that the service works with."""
    budgets, settings = MigrationBudgets(), DatabaseSettings()
    numbers = {name: getattr(budgets, name) for name in budgets.__struct_fields__}
    numbers["lock_timeouts"] = ", ".join(map(str, budgets.lock_timeouts_ms[:-1])) + f", then {_longest(budgets)}"
    numbers["longest_lock_timeout"] = _longest(budgets)
    numbers["wal_s"] = settings.sqlite_wal_timeout_s
    text = HEAD.read_text(encoding="utf-8")
    for name, value in numbers.items():
        text = text.replace(f"<{name}>", f"{value:g}" if isinstance(value, float) else str(value))
    return text


def _longest(budgets: MigrationBudgets) -> int:
    return budgets.lock_timeouts_ms[-1]


def _section(dialect: str, group: list[Scenario], tests: dict[int, list[NumberedTest]]) -> str:
    title = "both" if dialect == "Both" else dialect
    rows = [_row(scenario, tests.get(scenario.number, [])) for scenario in group]
    return f"\n### On {title}\n\n{TABLE_HEAD}" + "".join(rows)


def _row(scenario: Scenario, tests: list[NumberedTest]) -> str:
    long = {test.file for test in tests if _has_long_form(test)}
    files = sorted({test.file for test in tests})
    places = ", ".join(f"[{file.removesuffix('.py')}](../tests/{file}){' †' * (file in long)}" for file in files)
    return f"| {scenario.number} | {scenario.text} | {places} |\n"


def _has_long_form(test: NumberedTest) -> bool:
    names = (node for decorator in test.function.decorator_list for node in ast.walk(decorator))
    return any(
        (isinstance(node, ast.Name) and node.id == "long") or (isinstance(node, ast.Attribute) and node.attr == "long")
        for node in names
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
