"""Results are tables for a person and JSON for a program."""

import json

import pytest

from broker.cli import output

ROWS = [
    {"name": "one", "nodes": ["a", "b"], "alive": True, "cpu": None, "params": {"a": 1}, "more": 5},
    {"name": "two", "nodes": [], "alive": False, "cpu": 7, "params": {}},
]


@pytest.fixture
def person(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "is_person", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")


def test_rows_that_are_piped_are_one_json_array_of_everything(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_rows(ROWS, ["name"])
    assert json.loads(capsys.readouterr().out) == ROWS


@pytest.mark.usefixtures("person")
def test_rows_for_a_person_are_a_table_of_the_columns(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_rows(ROWS, ["name", "nodes", "alive", "cpu", "params"])
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "nodes", "alive", "cpu", "params"]
    assert first.split() == ["one", "a,", "b", "yes", "–", "a"]
    assert second.split() == ["two", "–", "no", "7", "–"]


@pytest.mark.usefixtures("person")
def test_a_person_may_ask_for_json(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_rows(ROWS, ["name"], json=True)
    assert json.loads(capsys.readouterr().out) == ROWS


@pytest.mark.parametrize("value", [None, 5, "text é", [1, {"a": None}], {}])
def test_a_value_is_json_in_both_cases(
    value: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output.print_value(value)
    monkeypatch.setattr(output, "is_person", lambda: True)
    output.print_value(value)
    output.print_value(value, json=True)
    text, decoder, found = capsys.readouterr().out.strip(), json.JSONDecoder(), []
    while text:
        one, end = decoder.raw_decode(text)
        found.append(one)
        text = text[end:].strip()
    assert found == [value] * 3


def test_output_on_a_terminal_is_for_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal in (True, False):
        monkeypatch.setattr("sys.stdout.isatty", lambda terminal=terminal: terminal)
        assert output.is_person() is terminal


def test_an_error_is_one_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_error("it failed")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "Error: it failed\n")


HOSTILE = "\x1b[2J\r\n2026 INFO: all is well\x9b\x7f\x85\u2028\u202e\u2066\u061c\ud800[bold]"
ESCAPED = r"\x1b[2J\r\n2026 INFO: all is well\x9b\x7f\x85\u2028\u202e\u2066\u061c\ud800[bold]"


@pytest.mark.usefixtures("person")
def test_text_that_peers_choose_is_shown_with_its_control_characters_escaped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    output.print_rows([{"name": HOSTILE, "nodes": [HOSTILE]}], ["name"])
    output.print_text(HOSTILE)
    output.print_note(HOSTILE)
    output.print_error(HOSTILE)
    captured = capsys.readouterr()
    assert captured.out.splitlines()[1:] == [ESCAPED, ESCAPED]
    assert captured.err.splitlines() == [ESCAPED, f"Error: {ESCAPED}"]


@pytest.mark.parametrize("terminal", [True, False])
def test_json_that_peers_choose_stays_json_and_is_escaped(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "is_person", lambda: terminal)
    output.print_value({HOSTILE: [HOSTILE, "é ✅"]})
    text = capsys.readouterr().out
    assert json.loads(text) == {HOSTILE: [HOSTILE, "é ✅"]}
    assert "é ✅" in text
    assert all(character.isprintable() or character == "\n" for character in text)
