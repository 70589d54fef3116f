"""How far a long stream is, for a person at a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn


@contextmanager
def transfer(description: str, total: int | None = None, *, hidden: bool = False) -> Iterator[Callable[[int], None]]:
    """A function that is told how many bytes more went by; shown on standard error, and gone at the end. `hidden` where
    the terminal shows the bytes themselves."""
    console = Console(stderr=True)
    if hidden or not console.is_terminal or console.is_dumb_terminal:
        yield lambda _bytes: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as shown:
        task = shown.add_task(description, total=total)
        yield lambda moved: shown.update(task, advance=moved)
