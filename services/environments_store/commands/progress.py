"""How far a long command is, on a terminal: on standard error, and gone at its end."""

import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["Report", "progress"]

Report = Callable[[str, int, int | None], None]
"""Told what is done now, how much of it, and of how much, when that is known."""


@contextmanager
def progress() -> Iterator[Report]:
    """Shows what it is told; where nobody looks, nothing. Log lines stand above it, as they are."""
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
    """Writes to the terminal so that the display moves out of the way, and nothing is wrapped or coloured."""

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
