"""Streams from and to files, standard input and standard output; `-` stands for the latter two."""

import codecs
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

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
"""Called with how many bytes more went by."""


def holds_values(name: str) -> bool:
    """Whether a file by its name holds JSON values, one a line."""
    return Path(name).suffix in (".ndjson", ".jsonl")


def size_of(name: str) -> int | None:
    """How much there is to read, when it is known."""
    path = Path(name)
    return path.stat().st_size if name != STANDARD and path.is_file() else None


async def read_bytes(name: str, moved: Moved) -> AsyncIterator[bytes]:
    """A file in chunks. Raises MoleculerClientError when it cannot be read."""
    with _opened(name, "rb") as file:
        while chunk := await to_thread.run_sync(_read, file, abandon_on_cancel=True):
            moved(len(chunk))
            yield chunk


async def read_values(name: str, moved: Moved) -> AsyncIterator[Any]:
    """The JSON value of each line that is not empty. Raises MoleculerClientError naming a line that is not JSON."""
    with _opened(name, "rb") as file:
        number = 0
        while line := await to_thread.run_sync(file.readline, abandon_on_cancel=True):
            number += 1
            moved(len(line))
            if not line.strip():
                continue
            try:
                yield msgspec.json.decode(line)
            except msgspec.DecodeError as error:
                raise MoleculerClientError(f"Line {number} of {name} is not JSON: {error}", 400, "NO_JSON") from None


async def write(stream: AsyncIterator[Any], name: str, moved: Moved) -> None:
    """Bytes as they come, on a terminal as text that is safe to show; other values as JSON, one a line. A new file is
    for its owner alone. Raises MoleculerClientError when that is not possible."""
    with _opened(name, "wb") as file:
        as_bytes = _readable() if name == STANDARD and is_person() else bytes
        async for chunk in stream:
            data = as_bytes(chunk) if isinstance(chunk, bytes | bytearray) else encode(chunk) + b"\n"
            with _explained(name):
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


def _read(file: BinaryIO) -> bytes:
    """What is there, and at most a chunk: a pipe is not waited for until it has more."""
    read1 = getattr(file, "read1", file.read)
    return bytes(read1(STREAM_CHUNK_BYTES))


@contextmanager
def _opened(name: str, mode: str) -> Iterator[Any]:
    if name == STANDARD:
        yield sys.stdin.buffer if mode == "rb" else sys.stdout.buffer
        return
    with _explained(name):
        file = open(name, mode, opener=_open_private)  # noqa: SIM115  # closed below: only opening it is explained
    with file:
        yield file


def _open_private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # no failure of ours: who reads has seen enough
        raise
    except OSError as error:
        raise MoleculerClientError(f"{name}: {error.strerror or error}", 400, "FILE") from None
