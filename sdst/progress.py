"""Progress bars on stderr, drawn where that is a terminal and silent elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TimeRemainingColumn

from .consoles import description, make_console


def make_bar(console: Console | None = None) -> Progress:
    """A bar with its counts and the time that is left; it vanishes when it is done."""
    columns = (description(), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return progress_of(columns, console)


def progress_of(columns: Sequence[ProgressColumn], console: Console | None = None) -> Progress:
    """A bar of these columns. Elsewhere than on a terminal it must not end in an empty line, as rich 14 lets it."""
    console = console or make_console(stderr=True)
    shown = console.is_terminal
    return Progress(*columns, console=console if shown else make_console(quiet=True), transient=True, disable=not shown)


@contextmanager
def counted(title: str, console: Console | None = None) -> Iterator[Callable[[int, int], None]]:
    """A bar for one thing; yields a function (done, total) that moves it."""
    with make_bar(console) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
