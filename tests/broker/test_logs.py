"""Log lines go to standard error, as text or as one JSON object each."""

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from broker.logs import LogFormat, configure_logs, encode, name_node


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The logging of the test run itself comes back."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    for handler in handlers:
        root.removeHandler(handler)  # so that they are not closed
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_text_has_the_time_in_utc_the_level_and_the_logger(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info")
    logging.getLogger("broker").info("it started")
    logging.getLogger("broker").debug("not shown")
    captured = capsys.readouterr()
    assert captured.out == ""
    time, level, logger, *message = captured.err.split()
    assert time.endswith("Z")
    assert (level, logger, message) == ("INFO", "broker:", ["it", "started"])


@pytest.mark.parametrize("form", ["text", "json"])
def test_lines_name_the_node_of_the_process(form: LogFormat, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", form)
    name_node("store-1")
    logging.getLogger("broker.mail").info("it started")
    line = capsys.readouterr().err
    if form == "text":
        assert line.split()[1:] == ["INFO", "store-1/broker.mail:", "it", "started"]
    else:
        assert json.loads(line).items() >= {"node": "store-1", "logger": "broker.mail"}.items()


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("debug", "json")
    try:
        raise ValueError("no such colour")
    except ValueError:
        logging.getLogger("broker").exception("it %s\nin two lines", "failed")
    (line,) = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert entry.keys() == {"time", "level", "logger", "message", "exception"}
    assert (entry["level"], entry["logger"], entry["message"]) == ("error", "broker", "it failed\nin two lines")
    assert entry["exception"].endswith("ValueError: no such colour")
    assert entry["time"].endswith("Z")


HOSTILE = "node\x1b[2J\r\n2026-01-01T00:00:00.000Z INFO broker: all is well\x85\u2028\u202e\ud800"


@pytest.mark.parametrize("form", ["text", "json"])
def test_text_of_a_peer_cannot_forge_a_line_or_move_the_cursor(
    form: LogFormat, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logs("info", form)
    logger = logging.getLogger("broker")
    logger.warning("INFO from '%s'", HOSTILE)
    try:
        raise ExceptionGroup(HOSTILE, [ValueError(HOSTILE)])
    except ExceptionGroup as error:
        error.add_note(HOSTILE)
        logger.exception("it failed")
    shown = capsys.readouterr().err
    records = [line for line in shown.split("\n") if line and not line.startswith(" ")]
    assert len(records) == 2
    assert "all is well" in records[0]
    assert all(character.isprintable() or character == "\n" for character in shown)


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="LOUD"):
        configure_logs("loud")


def test_what_has_no_json_form_is_written_as_text() -> None:
    assert json.loads(encode({"at": datetime(2024, 1, 2, tzinfo=UTC), "odd": ValueError("x")})) == {
        "at": "2024-01-02T00:00:00Z",
        "odd": "x",
    }
