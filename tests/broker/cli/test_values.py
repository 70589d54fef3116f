"""What is typed on a command line becomes a value, or a message about what is wrong with it."""

from typing import Any

import pytest
import typer

from broker.cli.values import read_json, read_object, read_params
from broker.context import ABSENT


@pytest.mark.parametrize(
    ("text", "pairs", "value"),
    [
        (None, None, ABSENT),
        (None, [], ABSENT),
        ("null", None, None),
        ("[1]", None, [1]),
        ('{"a": 1}', ["a=2", "b=text", "c={}", "d=", "e=1=2"], {"a": 2, "b": "text", "c": {}, "d": "", "e": "1=2"}),
        (None, ["a=true"], {"a": True}),
    ],
)
def test_json_and_pairs_are_one_value(text: str | None, pairs: list[str] | None, value: Any) -> None:
    assert read_params(text, pairs) == value


@pytest.mark.parametrize(("text", "pairs"), [("{", None), ("[1]", ["a=1"]), (None, ["a"]), (None, ["=1"])])
def test_what_cannot_be_meant_is_refused(text: str | None, pairs: list[str] | None) -> None:
    with pytest.raises(typer.BadParameter):
        read_params(text, pairs)


def test_an_object_is_asked_for_by_its_name() -> None:
    assert read_object(None, "--meta") is None
    assert read_object('{"a": 1}', "--meta") == {"a": 1}
    with pytest.raises(typer.BadParameter, match="--meta must be a JSON object"):
        read_object("[1]", "--meta")
    with pytest.raises(typer.BadParameter, match="--meta must be JSON"):
        read_json("{", "--meta")
