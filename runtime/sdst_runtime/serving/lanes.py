"""Work for the model in line: so much at a time, so much that waits, and a time-out for both together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from .counters import Counters
from .messages import Work
from .process import ModelProcess
from .refusals import Refusal

_SLACK_S = 0.05  # a process that says by itself why it is late is heard first


class Places:
    """Room for so many at a time; one more is told to come later."""

    def __init__(self, name: str, most: int) -> None:
        self._name, self._most, self.taken = name, most, 0

    @contextmanager
    def place(self, wait_s: float = 1.0) -> Iterator[None]:
        """A place, held within the block. Raises Refusal, with `wait_s` as the time to wait, when there is none."""
        self.require(wait_s)
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    def require(self, wait_s: float) -> None:
        """Raise Refusal when there is no place now."""
        if self.taken >= self._most:
            raise Refusal("queue_full", f"{self._most} requests are here already ({self._name}); come later", wait_s)


class Lane:
    """A line for one kind of work."""

    def __init__(
        self, name: str, model: ModelProcess, width: int, waiting: int, timeout_s: float, counters: Counters
    ) -> None:
        """`width` at a time, `waiting` more inside."""
        self._name, self._model, self._timeout_s = name, model, timeout_s
        self._places, self._share = Places(name, width + waiting), (width + waiting) / width
        self._free = asyncio.Semaphore(width)
        self._usual_s = 1.0  # what work took lately
        self._wait = counters.stages.labels(f"wait_{name}")
        self._running = counters.running.labels(name)
        counters.queue.labels(name).set_function(lambda: self._places.taken - self._running_now)
        self._running_now = 0

    def place(self) -> AbstractContextManager[None]:
        """A place in the line, held within the block. Raises Refusal when there is none."""
        return self._places.place(self._full_s)

    def require_place(self) -> None:
        """Raise Refusal when the line is full now."""
        self._places.require(self._full_s)

    @property
    def _full_s(self) -> float:
        """How long a full line takes."""
        return max(1.0, self._usual_s * self._share)

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
