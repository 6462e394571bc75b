"""Progress bars on stderr, drawn where that is a terminal and silent elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

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
    return Progress(
        *columns, console=console if shown else make_console(quiet=True), transient=True, disable=not shown,
        redirect_stdout=False,  # rich would print it to this console, which is stderr
    )  # fmt: skip


@contextmanager
def counted(title: str, console: Console | None = None) -> Iterator[Callable[[int, int], None]]:
    """A bar for one thing; yields a function (done, total) that moves it."""
    with make_bar(console) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


LOG_EVERY_S = 60.0  # where there is no terminal to draw a bar on


class Told:
    """How far a long work is: a bar with the time that is left on a terminal, a line a minute elsewhere."""

    def __init__(self, title: str, unit: str) -> None:
        self._title, self._unit = title, unit
        self._console = make_console(stderr=True)
        self._bar = make_bar(self._console)
        self._task = self._bar.add_task(title, total=None)
        self._began_s = self._said_s = time.monotonic()

    def show(self, done: int, total: int) -> None:
        """`total` 0: not known."""
        self._bar.update(self._task, completed=done, total=total or None)
        spent_s = time.monotonic() - self._began_s
        left = f"/{total}, {spent_s * (total - done) / done / 60:.0f} min left" if total and done else ""
        self._say(f"{self._title}: {done}{left} ({self._unit})")

    def name(self, title: str) -> None:
        """Another title for the bar, which says how far the part is that is worked at."""
        self._bar.update(self._task, description=title)
        self._say(title)

    def _say(self, line: str) -> None:
        now_s = time.monotonic()
        if not self._console.is_terminal and now_s - self._said_s > LOG_EVERY_S:
            self._said_s = now_s
            print(line, file=sys.stderr, flush=True)  # noqa: T201

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """No bar in this block, so that what it prints stands alone."""
        self._bar.stop()
        yield
        self._bar.start()

    @contextmanager
    def running(self) -> Iterator[Told]:
        with self._bar:
            yield self


def told(title: str, unit: str) -> AbstractContextManager[Told]:
    """A Told that is shown within the block."""
    return Told(title, unit).running()
