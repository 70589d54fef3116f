"""Event patterns match what they match in JS, oddities included: the whole table of protocol §7.3."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.registry.patterns import matches

NODE = "$node.connected"
TABLE: list[tuple[str, list[str], list[str]]] = [
    ("user.created", ["user.created"], ["userXcreated", "user", "user.created.now"]),
    ("user.*", ["user.created", "user.a", "user."], ["user", "user.x.done", "users"]),
    ("user.**", ["user.created", "user.x.y.done", "user."], ["user", "users"]),
    ("user*", ["user", "users", "userX", "user.created", "user.a"], ["user.created.now", "user.x.done"]),
    ("user**", ["user", "users", "user.x.y"], ["order.created"]),
    ("*", ["user", "x"], ["user.created"]),
    ("**", ["user", "user.created", "a.b.c", NODE], []),
    ("*.created", ["user.created", "order.created"], ["user.created.now"]),
    ("**.created", ["user.created"], ["user.created.now"]),
    ("user.*.done", ["user.x.done"], ["user.x.y.done"]),
    ("user.**.done", ["user.x.done", "user.x.y.done"], ["user.created"]),
    ("user.?", ["user.a", "userXa"], ["user.", "user.ab"]),
    ("user.cr?ated", ["user.created", "userXcreated"], ["user.crated"]),
    ("a.*.c", ["a.b.c", "aXbXc"], ["a.c", "a.b.b.c"]),
    ("a.**.c", ["a.b.c", "a.b.b.c"], ["a.c"]),
    ("*.*", ["user.created", "a.c", "user", "x"], ["a.b.c"]),
    ("user.*.*", ["user.x.done", "user.created.now", "user.created", "user.a"], ["user"]),
    ("us*r.created", ["user.created"], ["us.er.created"]),
    ("$node.*", [NODE], ["$node.a.b"]),
    ("$node.**", [NODE, "$node.a.b"], ["$services.changed"]),
    ("$*", ["$node"], [NODE]),
]


@pytest.mark.parametrize(("pattern", "name"), [(pattern, name) for pattern, names, _ in TABLE for name in names])
def test_c63_matches(pattern: str, name: str) -> None:
    assert matches(name, pattern)


@pytest.mark.parametrize(("pattern", "name"), [(pattern, name) for pattern, _, names in TABLE for name in names])
def test_c63_does_not_match(pattern: str, name: str) -> None:
    assert not matches(name, pattern)


@pytest.mark.parametrize(
    "pattern", ["a(b?", "[?", "a{?", "x\\?", "(?P<", "+?*", "$?(", "a.*(", "?[[", "a{9999999999999}?", "?" + "(" * 3000]
)
def test_a_pattern_that_is_not_a_regular_expression_matches_only_itself(pattern: str) -> None:
    matches("anything", pattern)
    assert isinstance(matches(pattern, pattern), bool)


@given(st.text(max_size=12), st.text(alphabet="ab.*?$([{\\+^|", max_size=12))
def test_no_name_and_no_pattern_of_a_peer_raises(name: str, pattern: str) -> None:
    assert isinstance(matches(name, pattern), bool)


@given(st.text(alphabet="abc.$", max_size=12))
def test_two_stars_match_every_name(name: str) -> None:
    assert matches(name, "**")


@given(st.text(alphabet="abc.$-_", min_size=1, max_size=12))
def test_a_name_without_wildcards_matches_itself_alone(name: str) -> None:
    assert matches(name, name)
    assert not matches(f"{name}x", name)


@given(st.text(alphabet="ab.$", max_size=12), st.text(alphabet="ab.*?$", max_size=12))
def test_c63_wildcards_match_what_the_regular_expression_of_js_matches(name: str, pattern: str) -> None:
    text = "\\" + pattern if pattern.startswith("$") else pattern
    text = text.replace("?", ".").replace("**", "\0").replace("*", "[^.]*").replace("\0", ".*")
    by_rule_2 = "?" in pattern or pattern.find("*") not in (-1, len(pattern) - 1, len(pattern) - 2)
    if by_rule_2 and "$" not in pattern[1:]:
        assert matches(name, pattern) == bool(re.fullmatch(text, name))


@pytest.mark.parametrize(
    "pattern", ["(a+)+b?", "*a" * 30 + "?b", "a+" * 30 + "?", "(a|aa)+?b", "(a{1,}){1,}?b", "**?" * 30 + "b"]
)
def test_a_pattern_that_would_be_tried_for_ever_is_answered_at_once(pattern: str) -> None:
    assert not matches("a" * 200, pattern)
