"""Results on standard output: a table for a person, JSON when piped or asked for. All text is escaped here."""

import io
import json as standard_json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.highlighter import JSONHighlighter
from rich.table import Table
from rich.text import Text

from broker.logs import encode, escaped, escaped_json


def use_utf8() -> None:
    """Write results and logs in UTF-8 in any locale: JSON requires it, and people search for lines of the log."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def is_person() -> bool:
    """Whether a person reads standard output."""
    return sys.stdout.isatty()


def print_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, json: bool = False) -> None:
    """Rows as a table of these columns, or as one JSON array of everything in them."""
    if json or not is_person():
        print_json(rows)
    else:
        Console().print(make_table(rows, columns))


def print_value(value: Any, *, json: bool = False) -> None:
    """One value: JSON in both cases, indented and coloured for a person."""
    if json or not is_person():
        print_json(value)
    else:
        lines = standard_json.dumps(standard_json.loads(encode(value)), indent=2, ensure_ascii=False).split("\n")
        text = "\n".join(escaped_json(line) for line in lines)
        Console().print(JSONHighlighter()(Text(text, no_wrap=True)), soft_wrap=True)


def print_json(value: Any, *, flush: bool = False) -> None:
    """A value as one line of JSON; `flush` for a program that reads while this one goes on."""
    print(encode(value).decode(), flush=flush)


def print_text(text: str) -> None:
    """One line for a person, at once."""
    print(escaped(text), flush=True)


def print_note(text: str) -> None:
    """One line that is not a result, on standard error."""
    print(escaped(text), file=sys.stderr, flush=True)


def reader_is_gone() -> None:
    """The reader of standard output has gone: discard what is still to be written, so that nothing fails on it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def print_error(message: str) -> None:
    """One line on standard error."""
    print(f"Error: {escaped(message)}", file=sys.stderr)


def _cell(value: Any) -> str:
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case list() | tuple() | dict():
            return ", ".join(map(str, value)) or "–"
        case _:
            return str(value)


def make_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(Text(escaped(_cell(row.get(column)))) for column in columns))
    return table
