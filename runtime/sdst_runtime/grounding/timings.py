"""How long the stages of grounding took: seconds, a sample a call."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager

MOST_SAMPLES = 10_000  # of each stage that are kept


class Clock:
    """Seconds of the stages of one call."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add a block's time to the stage `name`."""
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start


class Timings:
    """Seconds of each stage, a sample a call; of a service that runs for long the last MOST_SAMPLES."""

    def __init__(self) -> None:
        self.samples: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=MOST_SAMPLES))

    @contextmanager
    def call(self) -> Iterator[Clock]:
        """A clock whose stages become one sample each when the block ends well."""
        clock = Clock()
        yield clock
        for name, seconds in clock.seconds.items():
            self.samples[name].append(seconds)
