"""Every statement of the protocol has a test, and docs/conformance.md is made from the tests."""

import ast
from pathlib import Path

import pytest

from tests.conformance import PAGE, live_versions, page, statements
from tests.support.js_node import VERSIONS
from tests.support.live import versions_beside
from tests.support.numbered import numbered_tests

NUMBERS = [statement.number for statement in statements()]
# Captured packets come from JS nodes already.
BY_RULE = {87}


def test_each_of_the_90_statements_has_a_test() -> None:
    assert list(range(1, 91)) == NUMBERS
    assert sorted(set(NUMBERS) - set(numbered_tests("c"))) == []


def test_no_test_carries_a_number_that_does_not_exist() -> None:
    assert sorted(set(numbered_tests("c")) - set(NUMBERS)) == []


def test_each_statement_about_peers_is_shown_with_js_nodes_of_both_versions() -> None:
    shown = {
        number
        for number, tests in numbered_tests("c").items()
        if {version for test in tests for version in live_versions(test)} == set(VERSIONS)
    }
    assert sorted(set(NUMBERS) - shown - BY_RULE) == []


def test_the_page_is_what_the_tests_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "out of date: run `python -m tests.conformance`"


CONFTEST = """
from tests.support.js_node import VERSIONS, js_node
@pytest.fixture(params=VERSIONS)
def version(request): ...
@pytest.fixture(params=SETUPS)
async def cluster(request):
    async with js_node(request.param[0]): ...
SETUPS = [("0.14", "CBOR"), ("0.15 sqlite", "JSON")]
@pytest.fixture
async def listener(cluster): ...
"""
EXAMPLES = {
    "def test(listener): ...": ["0.14", "0.15"],
    "def test(version): js_node(version)": ["0.14", "0.15"],
    "def test(version): ...": [],
    "def test(nats_url): js_node('0.14', nats_url)": ["0.14"],
    "def helper(): js_node('0.15')\ndef test(): helper()": ["0.15"],
    "@pytest.mark.parametrize('version', ['0.14'])\ndef test(version): js_node(version)": ["0.14"],
    "def test(version):\n  if version == '0.15': ...": [],
    "def test(other):\n  if other == '0.14': js_node('0.15')": ["0.15"],
}


@pytest.mark.parametrize(("code", "versions"), EXAMPLES.items(), ids=list(EXAMPLES))
def test_the_versions_that_run_beside_a_test_are_read_from_its_fixtures(
    tmp_path: Path, code: str, versions: list[str]
) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST, encoding="utf-8")
    (tmp_path / "interop").mkdir()
    file = tmp_path / "interop" / "test_it.py"
    file.write_text(code, encoding="utf-8")
    function = ast.parse(code).body[-1]
    assert isinstance(function, ast.FunctionDef)
    assert sorted(versions_beside(function, file)) == versions
