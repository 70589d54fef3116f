"""What is typed on a command line becomes a value, or a message about what is wrong with it."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from broker.cli.values import check_input_is_read_once, read_json, read_object, read_params
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
    assert read_params(None if text is None else [text], pairs) == value


@pytest.mark.parametrize(("text", "pairs"), [("{", None), ("[1]", ["a=1"]), (None, ["a"]), (None, ["=1"])])
def test_values_that_cannot_be_combined_are_refused(text: str | None, pairs: list[str] | None) -> None:
    with pytest.raises(typer.BadParameter):
        read_params(None if text is None else [text], pairs)


def test_pairs_in_place_of_the_document_are_suggested_with_their_option() -> None:
    with pytest.raises(typer.BadParameter, match=r"must be JSON: .*\. Did you mean -p 'name=two words'\?"):
        read_params(["name=two words"], None)
    with pytest.raises(typer.BadParameter, match=r"One JSON document is expected, not 2\..* -p a=1 -p b=2\?"):
        read_params(["a=1", "b=2"], None)
    with pytest.raises(typer.BadParameter, match=r"must be JSON: [^?]*\.$"):
        read_params(['{"a=1'], None)


def test_an_error_names_the_option_that_must_be_an_object() -> None:
    assert read_object(None, "--meta") is None
    assert read_object('{"a": 1}', "--meta") == {"a": 1}
    with pytest.raises(typer.BadParameter, match="--meta must be a JSON object"):
        read_object("[1]", "--meta")
    with pytest.raises(typer.BadParameter, match="--meta must be JSON"):
        read_json("{", "--meta")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of the test, with files in it; one of them is standard input, too."""
    monkeypatch.chdir(tmp_path)
    for name, data in {
        "params.json": b'{"a": [1, null]}\n',
        "text": "two\nlines, é\n".encode(),
        "bytes": b"\xff\xfe",
        "list.json": b"[1]",
    }.items():
        (tmp_path / name).write_bytes(data)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"from": "stdin"}')))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "pairs", "value"),
    [
        ("@params.json", None, {"a": [1, None]}),
        ("@params.json", ["b=@list.json", "c=@text"], {"a": [1, None], "b": [1], "c": "two\nlines, é\n"}),
        ("-", ["b=1"], {"from": "stdin", "b": 1}),
        ("@-", None, {"from": "stdin"}),
        (None, ["a=@-"], {"a": {"from": "stdin"}}),
        (None, ["a=-", 'b="@text"', "c=me@example.org"], {"a": "-", "b": "@text", "c": "me@example.org"}),
    ],
)
def test_values_come_from_files_and_standard_input(
    files: Path, text: str | None, pairs: list[str] | None, value: Any
) -> None:
    assert read_params(None if text is None else [text], pairs) == value


@pytest.mark.parametrize(
    ("text", "pairs", "words"),
    [
        ("@nowhere.json", None, "nowhere.json: No such file"),
        ("@", None, "@: "),
        ("@text", None, r"\(text\) must be JSON"),
        ("@bytes", None, r"\(bytes\) must be JSON"),
        (None, ["a=@bytes"], "bytes for 'a' holds neither JSON nor text"),
        (None, ["a=@nowhere"], "nowhere: No such file"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    files: Path, text: str | None, pairs: list[str] | None, words: str
) -> None:
    with pytest.raises(typer.BadParameter, match=words):
        read_params(None if text is None else [text], pairs)


def test_standard_input_is_read_once() -> None:
    check_input_is_read_once(["a=-", "b=1"], "-", None, "@file")
    for pairs, texts in ((None, ["-", "@-"]), (["a=@-"], ["-"]), (["a=@-", "b=@-"], [])):
        with pytest.raises(typer.BadParameter, match="read once"):
            check_input_is_read_once(pairs, *texts)
