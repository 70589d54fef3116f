"""The progress of a long command, shown on standard error while it runs on a terminal."""

import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["Report", "progress"]

Report = Callable[[str, int, int | None], None]
"""Reports the current work, how much of it is done, and the total if known."""


@contextmanager
def progress() -> Iterator[Report]:
    """Show reports on a terminal, with log lines above; elsewhere show nothing."""
    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield lambda what, done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    shown = Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
    with shown, _logs_above(console):
        task = shown.add_task("", total=None, visible=False)

        def report(what: str, done: int, total: int | None) -> None:
            shown.update(task, description=what, completed=done, total=total, visible=True)

        yield report


class _Above(io.TextIOBase):
    """Writes log lines above the display, without wrapping or colour."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def write(self, text: str, /) -> int:
        self._console.print(text, end="", markup=False, highlight=False, emoji=False, soft_wrap=True)
        return len(text)


@contextmanager
def _logs_above(console: Console) -> Iterator[None]:
    handlers = [one for one in logging.getLogger().handlers if isinstance(one, logging.StreamHandler)]
    before = [handler.setStream(_Above(console)) for handler in handlers]
    try:
        yield
    finally:
        for handler, stream in zip(handlers, before, strict=True):
            if stream is not None:
                handler.setStream(stream)
