"""Values are printed and found as JavaScript does it; the expected texts are what Node.js prints."""

import math
from datetime import UTC, datetime
from typing import Any

import pytest

from broker.protocol.javascript import MISSING, dig, epoch_ms, number, text, to_number


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        (0, "0"),
        (-0.0, "0"),
        (1, "1"),
        (-1, "-1"),
        (1.0, "1"),
        (1.5, "1.5"),
        (-0.25, "-0.25"),
        (0.1, "0.1"),
        (1e21, "1e+21"),
        (1e20, "100000000000000000000"),
        (123456789012345680000.0, "123456789012345680000"),
        (1.2345e25, "1.2345e+25"),
        (1e-6, "0.000001"),
        (1e-7, "1e-7"),
        (1.5e-9, "1.5e-9"),
        (-1.5e-9, "-1.5e-9"),
        (2**53, "9007199254740992"),
        (2**53 + 1, "9007199254740992"),
        (12345678901234567890, "12345678901234567000"),
        (5e-324, "5e-324"),
        (1.7976931348623157e308, "1.7976931348623157e+308"),
        (float("nan"), "NaN"),
        (float("inf"), "Infinity"),
        (float("-inf"), "-Infinity"),
        (10**400, "Infinity"),
        (-(10**400), "-Infinity"),
        (100.25, "100.25"),
        (1234.5678, "1234.5678"),
    ],
)
def test_numbers(value: float, printed: str) -> None:
    assert number(value) == printed


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        ("a", "a"),
        ("", ""),
        (None, "null"),
        (MISSING, "undefined"),
        (True, "true"),
        (False, "false"),
        (1.0, "1"),
        ({"a": 1}, "[object Object]"),
        ([1, "b", None, [2, 3], True], "1,b,,2,3,true"),
        ([], ""),
    ],
)
def test_texts(value: Any, printed: str) -> None:
    assert text(value) == printed


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", 0), (" 10\n", 10), ("\u00a010\ufeff", 10), ("1e3", 1000), ("10.0", 10), (".5", 0.5), ("5.", 5), ("+5", 5),
        ("0x1F", 31), ("0b11", 3), ("0o17", 15), ("017", 17), ("-Infinity", -math.inf), ("1e400", math.inf),
        ("0x" + "f" * 300, math.inf), ("9007199254740993", 2**53), ("1e21", 1e21), (True, 1), (None, 0), ([], 0),
        (["7"], 7), (datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC), 1000), (2**60, 2**60),
    ],
)  # fmt: skip
def test_what_is_a_number_to_javascript(value: Any, expected: float) -> None:
    assert to_number(value) == expected


@pytest.mark.parametrize(
    "value",
    ["ten", "1_000", "nan", "infinity", "-0x1f", "1 2", "1,5", ".", "1e", "\u0663", "\u200b1", [1, 2], {}, b"1"],
)
def test_what_is_not_a_number_to_javascript(value: Any) -> None:
    assert math.isnan(to_number(value))


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("a", {"b": [{"c": 5}], "n": None}),
        ("a.b", [{"c": 5}]),
        ("a.b[0].c", 5),
        ("a.b.0.c", 5),
        ("a.b.1.c", MISSING),
        ("a.b.x", MISSING),
        ("a.n", None),
        ("a.n.x", MISSING),
        ("d.e", "dotted"),
        ("x", MISSING),
        ("", MISSING),
    ],
)
def test_paths(path: str, found: Any) -> None:
    value: Any = {"a": {"b": [{"c": 5}], "n": None}, "d.e": "dotted"}
    assert dig(value, path) == found


def test_a_path_into_what_holds_nothing_leads_nowhere() -> None:
    values: list[Any] = [None, 5, "text", []]
    for value in values:
        assert dig(value, "a.b") is MISSING


def test_dates_are_milliseconds() -> None:
    assert epoch_ms(datetime(1970, 1, 1, 0, 0, 0, 5000, UTC)) == "5"
