"""Workers of this machine: processes that end with this one, however it ends, and are replaced when they die."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from ..children import end_with_parent
from ..errors import SdstError
from ..machine import interrupts_ignored
from .work import Done, Task

MOST_DEATHS = 3  # of workers at one video: then it is the video
Work = Callable[[Task], Done]


def run_local(tasks: Sequence[Task], open_work: Callable[[], Work], workers: int) -> Iterator[Done]:
    """What came of each task, once, as it is done; `open_work` is called in each process and travels there by pickle.

    Iterate in the thread that stays: processes end with it. A task whose worker died is given to another one,
    `MOST_DEATHS` times at most. Raises the SdstError that `open_work` or a task raised.
    """
    waiting, deaths = deque(tasks), Counter[str]()
    team: list[_Worker] = []
    try:
        for _ in range(min(workers, len(tasks))):
            team.append(_start(open_work))
        for worker in team:
            _give(worker, waiting)
        while busy := {worker.pipe: worker for worker in team if worker.task}:
            for pipe in connection.wait(list(busy)):
                worker = busy[pipe]  # pyright: ignore[reportArgumentType]  wait returns what it was given
                task, message = worker.task, _receive(worker)
                assert task is not None, "only workers with a task are waited for"
                if isinstance(message, SdstError):
                    raise message
                if message is None:
                    deaths[task.vid] += 1
                    code = _end(worker)
                    team[team.index(worker)] = worker = _start(open_work)
                    if deaths[task.vid] < MOST_DEATHS:
                        waiting.appendleft(task)
                    else:
                        yield Done(task.vid, 0, _death(task, code))
                else:
                    yield message
                _give(worker, waiting)
    finally:
        for worker in team:
            _end(worker)


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    task: Task | None = None  # that it is at


def _start(open_work: Callable[[], Work]) -> _Worker:
    context = get_context("spawn")  # a fork would take over locks of the parent's threads
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, open_work, os.getpid()), daemon=True)
    with interrupts_ignored():
        process.start()
    theirs.close()  # so that its end is seen as the end of the pipe
    return _Worker(process, ours)


def _give(worker: _Worker, waiting: deque[Task]) -> None:
    worker.task = waiting.popleft() if waiting else None
    if worker.task is not None:
        try:
            worker.pipe.send(worker.task)
        except OSError:  # it is dead, which the end of its pipe will tell
            return


def _receive(worker: _Worker) -> Done | SdstError | None:
    """None: it died."""
    try:
        return worker.pipe.recv()
    except (EOFError, OSError):
        return None


def _end(worker: _Worker) -> int | None:
    """Its exit code."""
    worker.process.terminate()
    worker.process.join()
    worker.pipe.close()
    return worker.process.exitcode


def _death(task: Task, code: int | None) -> str:
    return (
        f"{task.path}: {MOST_DEATHS} workers died at it (exit code {code}; -9 is often a lack of memory): index "
        "it with fewer workers, or leave it out"
    )


# ---------------------------------------------------------------- in the worker process


def _work(pipe: Connection, open_work: Callable[[], Work], parent: int) -> None:
    end_with_parent(parent)
    try:
        work = open_work()
        while True:
            pipe.send(work(pipe.recv()))
    except SdstError as error:
        pipe.send(error)
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the caller is gone
        return
