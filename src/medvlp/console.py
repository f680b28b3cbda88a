"""The terminal: the only module that makes rich consoles and progress bars. Rich is imported on use."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Update = Callable[..., None]
"""Moves a progress bar: keywords ``completed``, ``advance``, ``total`` and ``description``."""


def console(*, stderr: bool = False, file: IO[str] | None = None) -> "Console":
    """Return a console that prints text as it is: brackets are no markup, numbers and paths get no colour."""
    from rich.console import Console

    return Console(stderr=stderr, file=file, markup=False, highlight=False)


@contextmanager
def progress_bar(description: str = "", total: int | None = None, *, show: bool = True) -> Iterator[Update]:
    """Show a progress bar on stderr, if that is a terminal, and remove it at the end.

    Yields:
        The function that moves the bar; without a bar it does nothing.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    terminal = console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, console=terminal, disable=not (show and terminal.is_terminal)) as bar:
        yield partial(bar.update, bar.add_task(description, total=total))
