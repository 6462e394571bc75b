"""Progress bars on stderr, drawn where that is a terminal and silent elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def make_bar(console: Console | None = None) -> Progress:
    """A bar with its counts and the time that is left; it vanishes when it is done."""
    console = console or Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def counted(title: str, console: Console | None = None) -> Iterator[Callable[[int, int], None]]:
    """A bar for one thing; yields a function (done, total) that moves it."""
    with make_bar(console) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
