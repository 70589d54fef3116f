"""Export and import to and from files or standard streams, with progress."""

import logging
import sys
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path
from typing import IO, Any

import anyio
import anyio.to_thread
import msgspec

from services.environments_store.commands.progress import progress
from services.environments_store.errors import OperationError
from services.environments_store.operations.backup import new_file
from services.environments_store.operations.exporting import Export, Selection
from services.environments_store.operations.importing import Import, Imported, OnConflict
from services.environments_store.operations.line_files import file_lines, spooled_lines
from services.environments_store.operations.opening import open_table

__all__ = ["Exported", "export_to_file", "export_to_stdout", "import_from"]

logger = logging.getLogger("environments-store")
_CHUNK_BYTES = 1_048_576


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """`damaged` rows have no readable document; the file has null for it."""

    file: str
    exported: int
    damaged: int


async def export_to_file(
    url: str, file: Path, selection: Selection, *, overwrite: bool, option: str | None = "--force"
) -> Exported:
    """Write the records to a new file, which appears only when complete (`option`: see `new_file`). Raises
    OperationError."""
    with new_file(file, overwrite=overwrite, option=option) as partial, partial.open("wb") as output:
        exported, damaged = await _export(url, selection, output)
        output.flush()
    return Exported(file=str(file), exported=exported, damaged=damaged)


async def export_to_stdout(url: str, selection: Selection) -> Exported:
    """Write the records to standard output. Raises OperationError, but BrokenPipeError when the reader stops."""
    try:
        exported, damaged = await _export(url, selection, sys.stdout.buffer)
        await anyio.to_thread.run_sync(sys.stdout.buffer.flush)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OperationError(f"Standard output cannot be written: {error.strerror or error}.") from error
    return Exported(file="-", exported=exported, damaged=damaged)


async def import_from(url: str, file: Path, on_conflict: OnConflict) -> Imported:
    """Store the lines of a file, or of standard input for `-`. Raises ImportRefusedError and OperationError."""
    async with open_table(url, logger, writes=True) as opened:
        work = Import(opened.database, opened.shape, on_conflict=on_conflict)
        try:
            async with _lines(file) as lines:
                with progress() as report:
                    return await work.run(lines, lambda phase, done: report(f"{phase} lines", done, None))
        except OSError as error:
            raise OperationError(f"'{file}' cannot be read: {error.strerror or error}.") from error


async def _export(url: str, selection: Selection, output: IO[bytes]) -> tuple[int, int]:
    async with open_table(url, logger, writes=False) as opened:
        export = Export(opened.database, opened.shape, logger)
        with progress() as report:
            async with aclosing(export.chunks(selection)) as chunks:
                async for chunk in chunks:
                    # In a thread: a slow reader of standard output must not block the event loop.
                    await anyio.to_thread.run_sync(output.write, chunk)
                    report("export records", export.exported, None)
        return export.exported, export.damaged


def _lines(file: Path) -> AbstractAsyncContextManager[IO[bytes]]:
    return spooled_lines(_stdin()) if str(file) == "-" else file_lines(file)


async def _stdin() -> Any:
    while data := await anyio.to_thread.run_sync(sys.stdin.buffer.read, _CHUNK_BYTES, abandon_on_cancel=True):
        yield data
