"""Logs on standard error, as text for people or one JSON object a line for collectors."""

import logging
import sys
import time
from typing import Literal

import msgspec

LogFormat = Literal["text", "json"]

TEXT = "%(asctime)s.%(msecs)03dZ %(levelname)-8s %(name)s: %(message)s"
DATE = "%Y-%m-%dT%H:%M:%S"


class TextFormatter(logging.Formatter):
    """One line a record, as far as its message goes: what peers and databases name must not look like lines of ours."""

    converter = staticmethod(time.gmtime)

    def __init__(self) -> None:
        super().__init__(TEXT, DATE)

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = record.message.replace("\r", "\\r").replace("\n", "\\n")
        return super().formatMessage(record)


class JSONFormatter(logging.Formatter):
    """`{"time", "level", "logger", "message"}`, and `exception` with its traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime(DATE, time.gmtime(record.created))
        entry = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(entry).decode()


def configure_logs(level: str = "INFO", format: LogFormat = "text") -> None:
    """Send every log line of this process to standard error, times in UTC. Raises ValueError for an unknown level."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter() if format == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
