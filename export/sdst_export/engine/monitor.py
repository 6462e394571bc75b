"""A build that shows how far it is, and that Ctrl-C ends.

TensorRT builds in C++ for minutes. The build runs in a thread of its own, so that the main thread hears Ctrl-C; the
progress monitor then tells TensorRT to stop, which it does at its next step.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

from rich.progress import Progress, TaskID

Result = TypeVar("Result")


def make_monitor(trt: Any, bar: Progress, stop: threading.Event) -> Any:
    """A trt.IProgressMonitor: a line of `bar` for each phase; it ends the build once `stop` is set."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.tasks: dict[str, TaskID] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            title = f"  {phase_name}" if parent_phase else phase_name
            self.tasks[phase_name] = bar.add_task(title, total=num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self.tasks:
                bar.update(self.tasks[phase_name], completed=step + 1)
            return not stop.is_set()

        def phase_finish(self, phase_name: str) -> None:
            task = self.tasks.pop(phase_name, None)
            if task is not None:
                bar.remove_task(task)

    return Monitor()


def interruptible(work: Callable[[], Result], stop: threading.Event) -> Result:
    """What `work` returns or raises. On Ctrl-C sets `stop`, waits for `work` to end and raises KeyboardInterrupt."""
    with ThreadPoolExecutor(1, "engine build") as executor:  # leaving the block waits
        try:
            future = executor.submit(work)
            while not future.done():
                wait([future], timeout=0.1)  # without an end it would not hear Ctrl-C on every platform
        except KeyboardInterrupt:
            stop.set()
            raise
    return future.result()
