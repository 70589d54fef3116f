"""The marks of JSONExt in text: documents keep every byte but the marks themselves (protocol §11)."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.codecs.json_ext import escape, has_marks, unescape


@pytest.mark.parametrize(
    "text",
    [
        b'{ "a" : 1.50, "b":[ [ "x" ] ] }',
        b'["\\"[[DT]]5", "a[[", "\\\\", [["[["]] , "]]"]'.replace(b'"[["', b'"["'),
        b'{"[[DT]]5":1,"[[k"  :[[]]}',
        b'"\\u005b"',
        b"[[[]]]",
        b"",
    ],
)
def test_c84_text_without_marked_strings_stays_as_it_is(text: bytes) -> None:
    assert escape(text) == text
    assert unescape(text) == text


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        (b'{"a": "[[DT]]5"}', b'{"a": "[[ES]][[DT]]5"}'),
        (b'["[[", "[[ES]][[hi"]', b'["[[ES]][[", "[[ES]][[ES]][[hi"]'),
        (b'{"[[k":"[[v\\"[[w"}', b'{"[[k":"[[ES]][[v\\"[[w"}'),
        (b'["\\\\","[[a\\\\"]', b'["\\\\","[[ES]][[a\\\\"]'),
        (b'"\\u005b\\u005BDT]]5"', b'"[[ES]]\\u005b\\u005BDT]]5"'),
    ],
)
def test_c84_strings_that_look_marked_are_escaped_and_nothing_else_changes(text: bytes, escaped: bytes) -> None:
    assert has_marks(text)
    assert escape(text) == escaped
    assert unescape(escaped) == text


def test_what_a_mark_stands_for_is_printed_as_json() -> None:
    assert unescape(b'{"a":"[[BI]]5","b":"[[XX]]5","[[BI]]5":0}') == b'{"a":5,"b":"[[XX]]5","[[BI]]5":0}'
    assert unescape(b'["\\u005b[BI]]5","[[\\u0045S]][[x"]') == b'[5,"[[x"]'


JSON = st.recursive(
    st.none() | st.integers() | st.text() | st.text('[]"\\DTES:,x', max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('["\\ab'), inner, max_size=3),
    max_leaves=20,
)


@given(value=JSON, ascii_only=st.booleans(), indent=st.sampled_from([None, 1]))
def test_c84_every_document_comes_back_byte_for_byte(value: Any, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    assert unescape(escape(text)) == text
    assert json.loads(escape(text)) == marked(value)


def marked(value: Any) -> Any:
    """What the replacer of JS nodes makes of a value."""
    if isinstance(value, dict):
        return {key: marked(item) for key, item in value.items()}
    if isinstance(value, list):
        return [marked(item) for item in value]
    return f"[[ES]]{value}" if isinstance(value, str) and value.startswith("[[") else value
