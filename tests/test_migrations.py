"""Every fault scenario has a test, and the page that says so is made from the tests."""

import re
from typing import get_args

from services.environments_store.schema.status import Reason, State
from tests.migrations import PAGE, page, scenarios
from tests.support.numbered import numbered_tests

NUMBERS = [scenario.number for scenario in scenarios()]


def test_each_of_the_46_scenarios_has_a_test() -> None:
    assert list(range(1, 47)) == NUMBERS
    assert sorted(set(NUMBERS) - set(numbered_tests("m"))) == []


def test_no_test_carries_a_number_that_does_not_exist() -> None:
    assert sorted(set(numbered_tests("m")) - set(NUMBERS)) == []


def test_the_page_is_what_the_tests_and_the_budgets_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "out of date: run `python -m tests.migrations`"
    assert re.findall(r"<\w+>", page()) == []


def test_the_page_names_every_state_and_reason() -> None:
    states = page().partition("## States")[2].partition("\n## ")[0]
    named = set(re.findall(r"^\| `(\w+)`(?:, `([\w-]+)`)?", states, re.MULTILINE))
    assert {state for state, _ in named} == set(get_args(State))
    assert {reason for _, reason in named if reason} == set(get_args(Reason))
