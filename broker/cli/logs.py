"""Logs on standard error, as text for people or one JSON object a line for collectors."""

import logging
import sys
import time
from typing import Literal

from broker.cli.output import encode, escaped

LogFormat = Literal["text", "json"]

TEXT = "%(asctime)s.%(msecs)03dZ %(levelname)-8s %(node)s%(name)s: %(message)s"
DATE = "%Y-%m-%dT%H:%M:%S"


class TextFormatter(logging.Formatter):
    """A record is one line, which names `node/logger` as those of Moleculer JS do. Its traceback follows with each line
    indented, so that text of a peer in it cannot look like a record."""

    converter = staticmethod(time.gmtime)
    node = ""

    def __init__(self) -> None:
        super().__init__(TEXT, DATE)

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.node = f"{self.node}/" if self.node else ""
        return escaped(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        line, *traceback = super().format(record).split("\n")
        return "\n".join([line, *(f"    {escaped(part)}" for part in traceback)])


class JSONFormatter(logging.Formatter):
    """`{"time", "level", "node", "logger", "message"}`, and `exception` with its traceback where there is one."""

    node = ""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime(DATE, time.gmtime(record.created))
        entry = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            **({"node": self.node} if self.node else {}),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return encode(entry).decode()


def configure_logs(level: str = "INFO", format: LogFormat = "text") -> None:
    """Send every log line of this process to standard error, times in UTC. Raises ValueError for an unknown level."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter() if format == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def name_node(node_id: str) -> None:
    """Let every log line of this process name the node that it runs, as several may log to one place."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, TextFormatter | JSONFormatter):
            handler.formatter.node = node_id
