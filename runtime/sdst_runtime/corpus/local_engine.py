"""Workers of this machine: processes that end with this one, however it ends."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import Any

from ..children import PipedProcess, end_with_parent
from ..errors import SdstError
from ..machine import interrupts_ignored
from .team import Died, Ready

_LAST_S = 10  # for a worker to end by itself, which its exit code tells, after its pipe has ended


class LocalTeam:
    """A Team of processes, each with the work that `open_work`, which travels there by pickle, gives.

    Use it in the thread that stays: on Linux processes end with that thread.
    """

    def __init__(self, open_work: Callable[[], Callable[[Any], Any]]) -> None:
        self._open_work = open_work
        self._workers: dict[int, PipedProcess] = {}
        self._started = 0

    def start(self) -> None:
        """Begin another process."""
        with interrupts_ignored():
            self._workers[self._started] = PipedProcess(_work, self._open_work, os.getpid())
        self._started += 1

    def hear(self) -> tuple[int, Any]:
        """The next word of any worker."""
        pipes = {child.pipe: worker for worker, child in self._workers.items()}
        worker = pipes[connection.wait(list(pipes))[0]]  # pyright: ignore[reportArgumentType]  it was given connections
        try:
            return worker, self._workers[worker].pipe.recv()
        except (EOFError, OSError):
            child = self._workers.pop(worker)
            child.process.join(_LAST_S)
            return worker, Died(f"exit code {child.end()}; -9 is often a lack of memory")

    def give(self, worker: int, task: Any) -> None:
        """Send a task."""
        with suppress(OSError):  # it is dead, which the end of its pipe will tell
            self._workers[worker].pipe.send(task)

    def close(self) -> None:
        """End all processes."""
        for child in self._workers.values():
            child.end()
        self._workers.clear()


# ---------------------------------------------------------------- in the worker process


def _work(pipe: Connection, open_work: Callable[[], Callable[[Any], Any]], parent: int) -> None:
    end_with_parent(parent)
    try:
        work = open_work()
        pipe.send(Ready())
        while True:
            pipe.send(work(pipe.recv()))
    except SdstError as error:
        pipe.send(error)
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the caller is gone
        return
