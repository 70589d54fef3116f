"""Streams from and to files; `-` stands for standard input and standard output.

Raises MoleculerClientError for a file that cannot be read or written.
"""

import codecs
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import msgspec
from anyio import to_thread

from broker.cli.output import is_person
from broker.defaults import STREAM_CHUNK_BYTES
from broker.errors import MoleculerClientError
from broker.logs import UNPRINTABLE, encode

STANDARD = "-"

_UNPRINTABLE_IN_TEXT = re.compile(rf"(?![\t\n]|\r\n){UNPRINTABLE.pattern}")
"""Text of several lines has line breaks and tabs."""

Moved = Callable[[int], None]
"""Takes the number of bytes that were read or written since the last time."""


def holds_values(name: str) -> bool:
    """Whether a file by its name holds JSON values, one a line."""
    return Path(name).suffix in (".ndjson", ".jsonl")


def size_of(name: str | None) -> int | None:
    """The number of bytes to read, where it is known."""
    return Path(name).stat().st_size if name and name != STANDARD and Path(name).is_file() else None


async def read_bytes(name: str, moved: Moved) -> AsyncIterator[bytes]:
    """A file in chunks, each as soon as there is something to read."""
    with _opened(name, "rb") as file:
        read = getattr(file, "read1", file.read)
        while chunk := await to_thread.run_sync(read, STREAM_CHUNK_BYTES, abandon_on_cancel=True):
            moved(len(chunk))
            yield chunk


async def read_values(name: str, moved: Moved) -> AsyncIterator[Any]:
    """The JSON value of each line that is not empty."""
    with _opened(name, "rb") as file:
        number = 0
        while line := await to_thread.run_sync(file.readline, abandon_on_cancel=True):
            number += 1
            moved(len(line))
            if line.strip():
                try:
                    yield msgspec.json.decode(line)
                except msgspec.DecodeError as error:
                    message = f"Line {number} of {name} is not JSON: {error}"
                    raise MoleculerClientError(message, 400, "NO_JSON") from None


async def write(stream: AsyncIterator[Any], name: str, moved: Moved) -> None:
    """Bytes as they come, on a terminal as text that is safe to show; other values as JSON, one a line. Only its owner
    can read a new file."""
    with _opened(name, "wb") as file:
        as_bytes = _readable() if name == STANDARD and is_person() else bytes
        async for chunk in stream:
            data = as_bytes(chunk) if isinstance(chunk, bytes | bytearray) else encode(chunk) + b"\n"
            await to_thread.run_sync(file.write, data)
            if name == STANDARD:
                file.flush()
            moved(len(data))


def _readable() -> Callable[[bytes | bytearray], bytes]:
    """A function that makes the bytes of a stream text that is safe to show."""
    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    return lambda chunk: _UNPRINTABLE_IN_TEXT.sub(
        lambda found: ascii(found[0])[1:-1], decoder.decode(bytes(chunk))
    ).encode()


@contextmanager
def _opened(name: str, mode: str) -> Iterator[IO[bytes]]:
    try:
        if name == STANDARD:
            yield sys.stdin.buffer if mode == "rb" else sys.stdout.buffer
        else:
            with open(name, mode, opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                yield file
    except BrokenPipeError:  # not a failure: the reader has seen enough
        raise
    except OSError as error:
        raise MoleculerClientError(f"{name}: {error.strerror or error}", 400, "FILE") from None
