"""Work for the model in line: so much at a time, so much that waits, and a time-out for both together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .counters import Counters
from .messages import Work
from .process import ModelProcess
from .refusals import Refusal

_SLACK_S = 0.05  # a process that says by itself why it is late is heard first


class Lane:
    """A line for one kind of work."""

    def __init__(
        self, name: str, model: ModelProcess, width: int, waiting: int, timeout_s: float, counters: Counters
    ) -> None:
        """`width` at a time, `waiting` more inside."""
        self._name, self._model, self._timeout_s = name, model, timeout_s
        self._width, self._most, self._inside = width, width + waiting, 0
        self._free = asyncio.Semaphore(width)
        self._usual_s = 1.0  # what work took lately
        self._wait = counters.stages.labels(f"wait_{name}")
        self._running = counters.running.labels(name)
        counters.queue.labels(name).set_function(lambda: self._inside - self._running_now)
        self._running_now = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the line, held within the block. Raises Refusal when there is none."""
        if self._inside >= self._most:
            wait_s = max(1.0, self._usual_s * self._most / self._width)
            raise Refusal("queue_full", f"{self._most} requests are here already ({self._name}); come later", wait_s)
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    async def do(self, work: Work) -> Any:
        """The model's answer. Call it within `place`. Raises Refusal."""
        start_s = time.monotonic()
        try:
            await asyncio.wait_for(self._free.acquire(), self._timeout_s)
        except asyncio.TimeoutError as error:
            raise self._late() from error
        waited_s = time.monotonic() - start_s
        self._wait.observe(waited_s)
        left_s = max(0.01, self._timeout_s - waited_s)
        self._count(1)
        task = asyncio.create_task(self._model.do(work, left_s))
        task.add_done_callback(self._done)
        done, _ = await asyncio.wait([task], timeout=left_s + _SLACK_S)
        if not done:  # the process is told to stop, and the place is free when it has
            raise self._late()
        self._usual_s += 0.1 * (time.monotonic() - start_s - waited_s - self._usual_s)
        return task.result()

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._count(-1)
        self._free.release()
        if not task.cancelled():
            task.exception()  # seen

    def _count(self, step: int) -> None:
        self._running_now += step
        self._running.set(self._running_now)

    def _late(self) -> Refusal:
        return Refusal(
            "timeout", f"expected to be done within {self._timeout_s:g} s ({self._name}); ask for less, or later", 1
        )
