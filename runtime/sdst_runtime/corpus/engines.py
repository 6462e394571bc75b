"""Which workers do the work of a corpus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar

from ..machine import usable_cores
from .local_engine import LocalTeam
from .ray_engine import RayTeam
from .team import Died, Team, spread

Engine = Literal["local", "ray"]
Given = TypeVar("Given")
Result = TypeVar("Result")


def run(
    tasks: Sequence[Given], open_work: Callable[[], Callable[[Given], Result]], engine: Engine, workers: int
) -> Iterator[tuple[int, Result | Died]]:
    """Each task's place and what came of it, once, as it is done; `open_work` is called in each worker.

    It, tasks and results travel by pickle. Iterate in the thread that stays. Raises what `spread` does.
    """
    teams: dict[Engine, Callable[[Callable[[], Callable[[Any], Any]]], Team]] = {"local": LocalTeam, "ray": RayTeam}
    return spread(tasks, lambda: teams[engine](open_work), workers)


def shared_threads(workers: int) -> int:
    """Threads of a model in each of so many workers, which share this machine's cores."""
    return max(1, usable_cores() // workers)
