"""Many videos, one after the other, with decoding, the vision model and the head at work at the same time.

Two threads run ahead of the caller: one decodes (PyAV releases the interpreter's lock, its decoder uses all cores), one
runs the vision model; the head runs in the caller's thread. Queues between them are short: memory is bounded by a few
pieces of clips and the features of a few videos, whatever the number and length of the videos.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Any

from ..contracts import EncodedVideo, Grounding, VideoFeatures
from ..errors import InputError
from ..media.workers import Piece, Unusable
from .grounder import Grounder
from .inputs import counted
from .kept import Place

_PIECES = 2  # of clips that wait for the vision model
_VIDEOS = 2  # whose features wait for the head
_LEAVE_S = 2.0  # how long the end waits for a thread that may be waiting for the caller's next job
_WAKE_S = 0.05  # how often a thread that waits looks whether it is to stop


@dataclass(frozen=True)
class Job:
    """A video and what is asked of it; no queries: it is only encoded."""

    path: Path
    queries: Sequence[str] = ()


@dataclass(frozen=True)
class GroundedVideo:
    """A video that could be used, and one answer a query."""

    path: Path
    video: EncodedVideo
    groundings: tuple[Grounding, ...]


@dataclass(frozen=True)
class FailedVideo:
    """A video that could not be used, or a query of it."""

    path: Path
    reason: str  # one line


def ground_videos(
    grounder: Grounder, jobs: Iterable[Job], on_clips: Callable[[Path, int], None] = lambda path, clips: None
) -> Iterator[GroundedVideo | FailedVideo]:
    """What came of each job, in order. `jobs` may be endless: another thread reads it, as far as it works ahead.

    `on_clips` hears, from another thread, of a video and how many of its clips the vision model has done since. Videos
    that the grounder keeps are not encoded again.

    A video or query that cannot be used is a FailedVideo and the next one follows; any other error is raised, that of a
    model that fails too. The threads end with the iterator: when it is exhausted, closed, or left by an error or
    Ctrl-C. Only when `jobs` itself blocks, the thread that waits for its next job is left behind after 2 seconds: it
    takes that job and ends, or ends with the process.
    """
    line = _Line()
    pieces, videos = Queue(_PIECES), Queue(_VIDEOS)
    line.start("sdst decode", _decoded(grounder, jobs), pieces, leave_s=_LEAVE_S)
    line.start("sdst vision", _encoded(grounder, line.taken(pieces), on_clips), videos)
    try:
        for video in line.taken(videos):
            yield video if isinstance(video, FailedVideo) else _ground(grounder, video)
    finally:
        line.stop()


def _ground(grounder: Grounder, encoded: _Encoded) -> GroundedVideo | FailedVideo:
    job = encoded.job
    try:
        video = _projected(grounder, encoded)
        answers = grounder.ground_batch(video, job.queries) if job.queries else []
    except InputError as error:
        return FailedVideo(job.path, str(error))
    return GroundedVideo(job.path, video, tuple(answers))


def _projected(grounder: Grounder, encoded: _Encoded) -> EncodedVideo:
    if isinstance(encoded.features, EncodedVideo):  # it was kept
        return encoded.features
    video = grounder.project(encoded.features, encoded.warnings)
    return video if grounder.kept is None else grounder.kept.keep(encoded.place, video)


# ---------------------------------------------------------------- in the threads


@dataclass(frozen=True, eq=False)
class _Encoded:
    """What the vision model made of a video."""

    job: Job
    place: Place | None  # where it is to be kept
    features: VideoFeatures
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Kept:
    """A video that was encoded before."""

    video: int
    encoded: EncodedVideo


@dataclass(frozen=True)
class _Task:
    job: Job
    place: Place | None


def _decoded(grounder: Grounder, jobs: Iterable[Job]) -> Iterator[tuple[_Task, Piece | Unusable | _Kept]]:
    for number, job in enumerate(jobs):
        task = _Task(job, None if grounder.kept is None else grounder.kept.place(job.path))
        encoded = None if grounder.kept is None else grounder.kept.find(task.place)
        if encoded is not None:
            yield task, _Kept(number, encoded)
            continue
        for piece in grounder.decode(job.path, number):
            yield task, piece


def _encoded(
    grounder: Grounder, pieces: Iterator[tuple[_Task, Any]], on_clips: Callable[[Path, int], None]
) -> Iterator[_Encoded | FailedVideo]:
    for _, of_one_video in groupby(pieces, lambda item: item[1].video):
        task, first = next(of_one_video)
        own = (piece for _, piece in chain([(task, first)], of_one_video))
        job = task.job
        if isinstance(first, _Kept):
            yield _Encoded(job, None, first.encoded, ())
            continue
        try:
            told = counted(own, partial(on_clips, job.path))
            yield _Encoded(job, task.place, *grounder.see(job.path, told))
        except InputError as error:
            yield FailedVideo(job.path, str(error))


class _Stop(Exception):
    """The caller is gone."""


@dataclass(frozen=True)
class _Crash:
    """The error that ended a thread, on its way to the caller."""

    error: BaseException


class _Line:
    """Threads joined by queues. An error in one ends those behind it and reaches the caller."""

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._threads: list[tuple[threading.Thread, float | None]] = []

    def start(self, name: str, items: Iterator[Any], out: Queue[Any], leave_s: float | None = None) -> None:
        """A thread that puts `items` into `out` as there is room, then the sign that there are no more.

        `stop` waits for it, for `leave_s` seconds at most.
        """
        thread = threading.Thread(target=self._work, args=(items, out), name=name, daemon=True)
        self._threads.append((thread, leave_s))
        thread.start()

    def taken(self, queue: Queue[Any]) -> Iterator[Any]:
        """What a thread puts into `queue`. Raises the error that ended it."""
        while (item := self._take(queue)) is not _END:
            if isinstance(item, _Crash):
                raise item.error
            yield item

    def stop(self) -> None:
        """End all threads; each finishes the piece it is at."""
        self._stopped.set()
        for thread, leave_s in self._threads:
            thread.join(leave_s)

    def _work(self, items: Iterator[Any], out: Queue[Any]) -> None:
        try:
            for item in items:
                self._put(out, item)
            self._put(out, _END)
        except _Stop:
            pass
        except BaseException as error:  # noqa: BLE001  the caller raises it
            with suppress(_Stop):
                self._put(out, _Crash(error))

    def _put(self, queue: Queue[Any], item: Any) -> None:
        while not self._stopped.is_set():
            with suppress(Full):
                return queue.put(item, timeout=_WAKE_S)
        raise _Stop

    def _take(self, queue: Queue[Any]) -> Any:
        while not self._stopped.is_set():
            with suppress(Empty):
                return queue.get(timeout=_WAKE_S)
        raise _Stop


_END = object()
