"""Logs on standard error, as text for people or as one JSON object a line for collectors.

Peers and databases choose much of the text. Characters that move a terminal's cursor, begin a line of their own or
reverse the order of text are written as escapes, by `escaped` and `encode`.
"""

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Controls (C0, DEL, C1), separators of lines and paragraphs, marks and overrides of direction, lone surrogates."""

_TEXT = "%(asctime)s %(levelname)-8s %(node)s%(name)s: %(message)s"


def timestamp(seconds: float) -> str:
    """A time since the epoch in UTC, with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def escaped(text: str) -> str:
    """Text as one line that is safe to show."""
    return UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def escaped_json(text: str) -> str:
    """JSON that is safe to show: these characters occur in strings only, where the escape has the same meaning."""
    return UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def encode(value: Any) -> bytes:
    """A value as JSON that is safe to show; values without a JSON form become text."""
    try:
        text = msgspec.json.encode(value, enc_hook=str).decode()
    except UnicodeEncodeError:  # a lone surrogate
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    return escaped_json(text).encode()


class TextFormatter(logging.Formatter):
    """One line for each record, with the time in UTC and `node/logger` as in Moleculer JS. The lines of a traceback are
    indented, so that text of a peer in it cannot look like a record."""

    def __init__(self, node: str = "") -> None:
        super().__init__(_TEXT)
        self.node = node

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return timestamp(record.created)

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.node = f"{self.node}/" if self.node else ""
        return escaped(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        line, *traceback = super().format(record).split("\n")
        return "\n".join([line, *(f"    {escaped(part)}" for part in traceback)])


class JSONFormatter(logging.Formatter):
    """`{"time", "level", "node", "logger", "message"}`; `exception` holds the traceback, if there is one."""

    def __init__(self, node: str = "") -> None:
        super().__init__()
        self.node = node

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": timestamp(record.created),
            "level": record.levelname.lower(),
            **({"node": self.node} if self.node else {}),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return encode(entry).decode()


def configure_logs(level: str = "INFO", format: LogFormat = "text", node: str = "") -> None:
    """Send all log records of this process to standard error. Raises ValueError for an unknown level."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter(node) if format == "json" else TextFormatter(node))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def name_node(node_id: str) -> None:
    """Add the id of the node that this process runs to all later records."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, TextFormatter | JSONFormatter):
            handler.formatter.node = node_id
