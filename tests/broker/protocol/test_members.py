"""The slow path splits JSON objects byte-exactly and refuses what is not JSON."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.members import load, split_object

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), VALUES, max_size=6), st.sampled_from([None, 0, 2]), st.booleans())
def test_members_put_together_again_are_the_object(value: dict[str, object], indent: int | None, ascii: bool) -> None:
    data = json.dumps(value, indent=indent, ensure_ascii=ascii).encode("utf-8", "surrogatepass")
    assert {key: load(member) for key, member in split_object(data).items()} == value


def test_a_member_keeps_its_bytes() -> None:
    data = b' { "a" : {"b" : [1 , 2]}  , "c":1.50 , "d":"\\ud800" } '
    assert split_object(data) == {"a": b'{"b" : [1 , 2]}', "c": b"1.50", "d": b'"\\ud800"'}


def test_the_last_of_equal_keys_wins() -> None:
    assert split_object(b'{"a":1,"a":2}') == {"a": b"2"}


def test_quotes_and_brackets_in_strings_are_text() -> None:
    assert split_object(rb'{"a\"}":"]}\\","b":"{"}') == {'a"}': rb'"]}\\"', "b": b'"{"'}


def test_an_empty_object_has_no_members() -> None:
    assert split_object(b" { } ") == {}


def test_deep_nesting_is_split_without_recursion() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    assert split_object(b'{"a":' + deep + b"}") == {"a": deep}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[1]",
        b"{",
        b'{"a"}',
        b'{"a":1',
        b'{"a":1}}',
        b'{"a":1} x',
        b"{a:1}",
        b'{"a"=1}',
        b"}",
        b'{"a":',
        b'{"a":1,}',
        b"{,}",
        b'{"a":1]',
    ],
)
def test_what_is_not_an_object_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        split_object(data)


def test_any_damage_is_refused_or_read() -> None:
    """Whatever bytes arrive, nothing but ValueError and RecursionError comes out."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - a randomised test prints its seed
    chance = random.Random(seed)
    good = json.dumps({"a": {"b": [1, "x\ud800", None]}, "c": "}", "d": -1.5e3}).encode()
    for _ in range(3000):
        damaged = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            for member in split_object(bytes(damaged)).values():
                load(member)
        except (ValueError, RecursionError):
            pass


def test_lone_surrogates_are_read() -> None:
    assert load(b'"\\ud800"') == "\ud800"


@pytest.mark.parametrize("data", [b"NaN", b"Infinity", b"-Infinity", b"[NaN]", b"undefined", b"", b"1 2"])
def test_what_is_not_json_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        load(data)


@pytest.mark.parametrize(
    "text", [b'\\"' * 500_000, b"[[" * 500_000, b'",' * 500_000], ids=["quotes", "brackets", "commas"]
)
def test_a_text_that_does_not_end_is_refused_in_the_time_it_takes_to_read_it(text: bytes) -> None:
    """Looking for the end again from each quote takes hours, which the time-out of every test ends."""
    with pytest.raises(ValueError, match=r"."):
        split_object(b'{"a":"' + text)
