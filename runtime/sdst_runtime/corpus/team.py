"""Work spread over a team of workers that may die: each task is done, and is told once.

A team is processes of this machine (local_engine.py) or of a Ray cluster (ray_engine.py). A task whose worker died is
given to another one; one that ended MOST_DEATHS workers is told as Died. Work must bear being done twice.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import SdstError, SessionError

MOST_DEATHS = 3  # of workers at one task: then it is the task. Of workers that open their models: then it is the models


@dataclass(frozen=True)
class Ready:
    """A worker's first word: it has opened what it works with."""


@dataclass(frozen=True)
class Died:
    """A worker's last word, said for it; and what came of a task at which MOST_DEATHS workers died."""

    reason: str

    def __str__(self) -> str:
        return f"{MOST_DEATHS} workers died at it ({self.reason})"


class Team(Protocol):
    """Workers, which are told apart by number. Tasks and results travel by pickle."""

    def start(self) -> None:
        """Begin another worker."""
        ...

    def hear(self) -> tuple[int, Any]:
        """The next word of any worker: Ready, what came of its task, the SdstError that this raised, or Died."""
        ...

    def give(self, worker: int, task: Any) -> None:
        """Begin a task; a worker has one at a time."""
        ...

    def close(self) -> None:
        """End all workers where they are."""
        ...


def spread(tasks: Sequence[Any], open_team: Callable[[], Team], workers: int) -> Iterator[tuple[int, Any]]:
    """Each task's place and what came of it, a result or Died, once, as it is done.

    Raises the SdstError that a worker raised, and SessionError when workers die before they are ready.
    """
    waiting, left, deaths, at = deque(range(len(tasks))), len(tasks), Counter[int | None](), dict[int, int]()
    team = open_team()
    try:
        for _ in range(min(workers, len(tasks))):
            team.start()
        while left:
            worker, word = team.hear()
            place = at.pop(worker, None)
            if isinstance(word, SdstError):
                raise word
            if isinstance(word, Died):
                deaths[place] += 1
                if place is None:
                    _require_life(deaths[place], word)
                elif deaths[place] < MOST_DEATHS:
                    waiting.appendleft(place)
                else:
                    left -= 1
                    yield place, word
                if left:
                    team.start()
                continue
            if isinstance(word, Ready):
                deaths[None] = 0
            if waiting:
                at[worker] = waiting.popleft()
                team.give(worker, tasks[at[worker]])
            if place is not None:
                left -= 1
                yield place, word
    finally:
        team.close()


def _require_life(deaths: int, last: Died) -> None:
    if deaths >= MOST_DEATHS:
        raise SessionError(
            f"{deaths} workers died before they could work ({last.reason}): expected room for the models of a bundle "
            "in each; take fewer workers"
        )
