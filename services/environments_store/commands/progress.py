"""How far a long command is, on a terminal: on standard error, and gone at its end."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["Report", "progress"]

Report = Callable[[str, int, int | None], None]
"""Told what is done now, how much of it, and of how much, when that is known."""


@contextmanager
def progress() -> Iterator[Report]:
    """Shows what it is told; where nobody looks, nothing. Log lines stand above it."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda what, done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as shown, _logs_above():
        task = shown.add_task("", total=None, visible=False)

        def report(what: str, done: int, total: int | None) -> None:
            shown.update(task, description=what, completed=done, total=total, visible=True)

        yield report


@contextmanager
def _logs_above() -> Iterator[None]:
    """Log lines go through the progress display, which moves out of their way."""
    handlers = [one for one in logging.getLogger().handlers if isinstance(one, logging.StreamHandler)]
    before = [handler.setStream(sys.stderr) for handler in handlers]
    try:
        yield
    finally:
        for handler, stream in zip(handlers, before, strict=True):
            if stream is not None:
                handler.setStream(stream)
