"""Keys are those of Moleculer 0.15, by the vectors of the reference (protocol §12.7)."""

from datetime import UTC, datetime
from typing import Any

import pytest

from broker.middlewares.cacher import cache_key, flatten
from broker.protocol.javascript import MISSING
from tests.support.targets import made_context

PARAMS = {
    "id": 2,
    "title": "New post",
    "tags": ["a", "b"],
    "o": {"x": 1, "y": None},
    "d": datetime(1970, 1, 1, 0, 0, 0, 5000, UTC),
    "t": True,
    "f": 1.5,
    "u": MISSING,
}


def key(
    params: Any, keys: list[str] | None = None, meta: Any = None, headers: Any = None, limit: int | None = None
) -> str:
    action = "posts.find" if keys is None else "posts.get"
    ctx = made_context(params, meta=meta or {}, headers=headers or {})
    return cache_key(action, ctx, keys, limit)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (
            PARAMS,
            'posts.find:id|2|title|"New post"|tags|["a"|"b"]|o|x|1|y|null|d|5|t|true|f|1.5|u|undefined',
        ),
        ({}, "posts.find:"),
        (None, "posts.find:null"),
        ("str", 'posts.find:"str"'),
        ([1, [True, None]], "posts.find:[1|[true|null]]"),
    ],
)
def test_all_params_make_the_key(params: Any, expected: str) -> None:
    assert key(params) == expected


@pytest.mark.parametrize(
    ("params", "keys", "meta", "headers", "expected"),
    [
        ({"id": 5}, ["id"], None, None, "posts.get:5"),
        ({"id": "5"}, ["id"], None, None, 'posts.get:"5"'),
        ({}, ["id"], None, None, "posts.get:undefined"),
        (None, ["id"], None, None, "posts.get:undefined"),
        ({"id": {"a": 1}}, ["id"], None, None, "posts.get:a|1"),
        ({"id": 5, "a": {"b": 2}}, ["id", "a.b", "#user.id"], {"user": {"id": 7}}, None, "posts.get:5|2|7"),
        ({"id": "5"}, ["id", "#user.id"], {"user": {"id": "u"}}, None, 'posts.get:"5"|"u"'),
        ({"id": 5}, ["id", "@auth"], None, {"auth": "x"}, 'posts.get:5|"x"'),
        ({"id": 5}, ["id", "@auth"], None, None, "posts.get:5|undefined"),
        ({"id": 5}, [], None, None, "posts.get"),
    ],
)
def test_named_keys_make_the_key(params: Any, keys: list[str], meta: Any, headers: Any, expected: str) -> None:
    assert key(params, keys, meta, headers) == expected


def test_long_keys_end_in_a_digest() -> None:
    made = key({"a": "x" * 100}, limit=60)
    assert made.startswith('posts.find:a|"xxxxxxxxxxxxx')
    assert len(made) == len("posts.find:") + 60
    assert made != key({"a": "x" * 101}, limit=60)
    assert key({"a": "x"}, limit=60) == 'posts.find:a|"x"'
    assert key({"a": "x" * 100}, limit=43) == key({"a": "x" * 100})
    assert len(key({"a": "x" * 100}, limit=44)) == len("posts.find:") + 44


def test_the_digest_of_the_reference() -> None:
    from broker.middlewares.cacher import shortened

    assert shortened("a|" + "x" * 100, 60) == "a|xxxxxxxxxxxxxx3L9L/LhDHBbEhjUT4mdaegutFD881JuWdvubFN0tc3o="


def test_a_long_object_among_keys_is_shortened_by_itself() -> None:
    made = key({"id": 1, "o": {"a": "x" * 100}}, ["o", "id"], limit=60)
    assert made.startswith('posts.get:a|"xxxxxxx')
    assert len(made) == len("posts.get:") + 60


def test_flatten_takes_anything() -> None:
    assert flatten(object) == str(object)
