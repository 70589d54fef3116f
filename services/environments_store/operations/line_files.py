"""The lines of an import in a file that can be read twice: once to check every line, once to store them."""

import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, Generic, NamedTuple, TypeVar
from uuid import UUID

import anyio.to_thread
import msgspec

from services.environments_store.defaults import OperationLimits, StoreLimits
from services.environments_store.errors import ImportRefusedError
from services.environments_store.operations.lines import NotJsonError, import_rows
from services.environments_store.queries.transfer import StoredRow

__all__ = ["Batch", "batches_of", "file_lines", "spooled_lines"]

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


Row = TypeVar("Row")


class Batch(NamedTuple, Generic[Row]):
    """Rows with distinct ids, themselves or as staged, and the line number of each."""

    rows: list[Row]
    numbers: list[int]


@asynccontextmanager
async def file_lines(path: Path) -> AsyncGenerator[IO[bytes]]:
    """Open a file for reading from its start more than once. Raises OSError."""
    file = await anyio.to_thread.run_sync(lambda: path.open("rb"))
    try:
        if not file.seekable():  # a named pipe
            async with spooled_lines(_chunks(file)) as spool:
                yield spool
        else:
            yield file
    finally:
        file.close()


@asynccontextmanager
async def spooled_lines(chunks: AsyncIterator[Any], limits: OperationLimits | None = None) -> AsyncGenerator[IO[bytes]]:
    """Copy a stream of bytes, text or records (one a line) to a temporary file. Raises what the stream raises."""
    limits = limits or OperationLimits()
    with tempfile.SpooledTemporaryFile(max_size=limits.spool_bytes) as spool:
        async for chunk in chunks:
            data = _bytes(chunk)
            if spool.tell() + len(data) < limits.spool_bytes:
                spool.write(data)
            else:
                await anyio.to_thread.run_sync(spool.write, data)
        yield spool


async def batches_of(
    file: IO[bytes], seed: bytes, *, checked: bool, limits: OperationLimits, store_limits: StoreLimits
) -> AsyncGenerator[Batch[StoredRow]]:
    """Read all lines in batches that fit one statement; `seed` makes generated uuids the same on each reading.

    Raises ImportRefusedError, with line number and reason, for a line that is not a record.
    """
    await anyio.to_thread.run_sync(file.seek, 0)
    reader = _Reader(file, seed, checked, limits, store_limits)
    # In a thread: parsing documents must not delay the node's heartbeats.
    while batch := await anyio.to_thread.run_sync(reader.next):
        yield batch


async def _chunks(file: IO[bytes]) -> AsyncGenerator[bytes]:
    while data := await anyio.to_thread.run_sync(file.read, OperationLimits().spool_bytes, abandon_on_cancel=True):
        yield data


class _Reader:
    def __init__(
        self, file: IO[bytes], seed: bytes, checked: bool, limits: OperationLimits, store_limits: StoreLimits
    ) -> None:
        self._file = file
        self._seed = seed
        self._checked = checked
        self._limits = limits
        self._store_limits = store_limits
        self._found = self._rows()
        self._kept: tuple[StoredRow, int] | None = None

    def next(self) -> Batch[StoredRow] | None:
        rows: dict[str, StoredRow] = {}
        numbers: list[int] = []
        size = 0
        while len(rows) < self._limits.import_rows and size < self._limits.import_bytes:
            found, self._kept = self._kept or next(self._found, None), None
            if found is None:
                break
            row, number = found
            if row.id in rows:
                # One statement cannot store an id twice: leave the second line to the next batch.
                self._kept = found
                break
            rows[row.id] = row
            numbers.append(number)
            size += len(row.document)
        return Batch(list(rows.values()), numbers) if rows else None

    def _rows(self) -> Iterator[tuple[StoredRow, int]]:
        number, first = 0, True
        while line := self._file.readline(self._limits.line_bytes + 1):
            number += 1
            if number == 1:
                line = line.removeprefix(_BYTE_ORDER_MARK)
            if line.isspace() or not line:
                continue
            for row in self._read(line, number, whole=first):
                yield row, number
            first = False

    def _read(self, text: bytes, number: int, *, whole: bool = False) -> list[StoredRow]:
        """The rows of a line. With `whole`, a line that is not JSON may begin a JSON text of several lines."""
        if len(text) > self._limits.line_bytes:
            raise ImportRefusedError(number, f"it has more than {self._limits.line_bytes} bytes")
        try:
            return import_rows(text, partial(self._made, number), self._store_limits, checked=self._checked)
        except NotJsonError as error:
            rest = self._file.read(self._limits.line_bytes + 1 - len(text)) if whole else b""
            if len(text) + len(rest) > self._limits.line_bytes:
                reason = f"{error}, which may have {self._limits.line_bytes} bytes"
                raise ImportRefusedError(number, reason) from None
            if not rest:
                raise ImportRefusedError(number, str(error)) from None
            return self._read(text + rest, number)
        except ValueError as error:
            raise ImportRefusedError(number, str(error)) from None

    def _made(self, line: int, number: int) -> str:
        """Generate the uuid of a document without one, the same on each reading."""
        digest = blake2b(b"%d %d" % (line, number), key=self._seed, digest_size=16).digest()
        return str(UUID(bytes=digest, version=4))


def _bytes(chunk: Any) -> bytes:
    if isinstance(chunk, bytes):
        return chunk
    if isinstance(chunk, str):
        return chunk.encode("utf-8", "surrogatepass")
    return msgspec.json.encode(chunk) + b"\n"
