"""The page docs/conformance.md, made from the tests: `python -m tests.conformance` writes it."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from tests.support.js_node import VERSIONS
from tests.support.live import versions_beside
from tests.support.numbered import TESTS, NumberedTest, numbered_tests

__all__ = ["PAGE", "Statement", "live_versions", "page", "statements"]

PAGE = TESTS.parent / "docs" / "conformance.md"
STATEMENTS = TESTS / "golden" / "conformance.tsv"

HEAD = """\
# Conformance

What a node of a cluster of Moleculer JS 0.14 (protocol 4) or 0.15 (protocol 5) must do, in {count} statements, and the
tests that show that a Python node does it.

- **live**: shown with a running JS node of that version, as the peer or as the reference for the Python node.
- rule: shown without one: with packets captured from JS nodes of both versions, with packets that the test builds,
  or between Python nodes.

{live} of the statements are shown live in both versions. Each test's name begins with the numbers of its statements:
`pytest -k c41_` runs the tests of number 41.

Python nodes have two subjects in addition to those of statement 2: `PEERS`, on which they report to each other the
nodes they know (a node that gets such a report sends DISCOVER to each of these nodes instead of the broadcast of
statement 3), and `REPLY`, below which they receive acknowledgements ([protocol](protocol.md)).

`python -m tests.conformance` makes this page from the names of the tests and the JS nodes that their fixtures start. A
test fails if it is out of date, or if a statement has no test.
"""
TABLE_HEAD = "| # | statement | JS 0.14 | JS 0.15 | tests |\n|--:|---|---|---|---|\n"


@dataclass(frozen=True)
class Statement:
    """One line of the checklist."""

    number: int
    area: str
    text: str


def statements() -> list[Statement]:
    """All statements in order."""
    lines = (line.split("\t") for line in STATEMENTS.read_text(encoding="utf-8").splitlines())
    return [Statement(int(number), area, text) for number, area, text in lines]


def live_versions(test: NumberedTest) -> frozenset[str]:
    """The versions of the JS nodes that run with a test."""
    return versions_beside(test.function, TESTS / test.file)


def page() -> str:
    """The expected content of the page."""
    tests = numbered_tests("c")
    listed = statements()
    live = sum(_live(tests.get(statement.number, ())) >= set(VERSIONS) for statement in listed)
    head = HEAD.format(count=len(listed), live=live)
    areas = itertools.groupby(listed, key=lambda statement: statement.area)
    return head + "".join(_section(area, list(group), tests) for area, group in areas)


def _section(area: str, group: list[Statement], tests: dict[int, list[NumberedTest]]) -> str:
    rows = [_row(statement, tests.get(statement.number, [])) for statement in group]
    return f"\n## {area}\n\n{TABLE_HEAD}" + "".join(rows)


def _row(statement: Statement, tests: list[NumberedTest]) -> str:
    live = _live(tests)
    how = " | ".join("**live**" if version in live else "rule" if tests else "–" for version in VERSIONS)
    files = sorted({test.file for test in tests}, key=lambda file: (not file.startswith("interop/"), file))
    places = ", ".join(f"[{file.removesuffix('.py')}](../tests/{file})" for file in files)
    return f"| {statement.number} | {statement.text} | {how} | {places} |\n"


def _live(tests: Sequence[NumberedTest]) -> set[str]:
    return {version for test in tests for version in live_versions(test)}


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
