"""Many videos decoded in processes of their own, while the caller computes with what they send.

Each process decodes one video at a time and waits until its clips are taken: memory stays bounded by three pieces a
process, whatever the length of the videos. When the caller is killed the processes end by themselves.

Shape letters: n clips in a piece, F frames a clip, S image size in pixels. Time is in seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from ..children import PipedProcess
from ..contracts import FeatureSpec
from ..errors import InputError, require_package
from ..machine import interrupts_ignored, usable_cores
from .clips import ClipStream
from .containers import source_digest

_AHEAD = 2  # videos given to a process before it has finished the first: it never waits for the next one's name


@dataclass(frozen=True)
class Ending:
    """What is known of a video after its last clip."""

    clips: int
    duration_s: float
    warnings: tuple[str, ...]  # what was wrong with the file, a line each
    source: str  # the file itself (`source_digest`)


@dataclass(frozen=True, eq=False)
class Piece:
    """The next clips of a video; pieces of one video come in order, those of several mixed."""

    video: int  # its place in the list of paths
    clips: np.ndarray  # uint8 n F S S 3, RGB, n >= 1
    ending: Ending | None  # with the last piece


@dataclass(frozen=True)
class Unusable:
    """A video that cannot be decoded; pieces of it may have come before."""

    video: int
    reason: str


@contextmanager
def decoding(
    paths: Sequence[Path], spec: FeatureSpec, workers: int | None = None
) -> Iterator[Iterator[Piece | Unusable]]:
    """Start processes (default: one a core) that decode `paths`; yields what they send. The block's end stops them.

    Iterating raises InputError when a process dies, naming the video it was at.
    """
    if workers is not None and workers < 1:
        raise InputError(f"workers: expected at least 1, got {workers}")
    require_package("av", "")
    team: list[_Worker] = []
    try:
        with interrupts_ignored():
            for _ in range(min(workers or usable_cores(), len(paths))):
                team.append(_Worker(PipedProcess(_work, spec)))
        yield _messages(team, paths)
    finally:
        for worker in team:
            worker.child.end()


def decode_pieces(video: int, path: Path, spec: FeatureSpec, threads: int) -> Iterator[Piece | Unusable]:
    """What is sent of one video, in order; `threads` are the decoder's (0: one a core)."""
    require_package("av", "")
    source = source_digest(path)  # before it is read: what is there later may be another file
    return pieces_of(video, ClipStream(path, spec, threads=threads), source)


def pieces_of(video: int, stream: ClipStream, source: str = "") -> Iterator[Piece | Unusable]:
    """What is sent of a stream of clips, in order; `source` is the digest of its file."""
    held = None
    try:
        for clips in stream:
            if held is not None:
                yield Piece(video, held, None)
            held = clips
    except InputError as error:
        yield Unusable(video, str(error))
        return
    except Exception as error:  # noqa: BLE001  foreign libraries, on bytes from anywhere: one video ends no others
        yield Unusable(video, f"{stream.path}: cannot be decoded ({error!r}); convert it to mp4")
        return
    assert held is not None, "a video has at least one clip"
    yield Piece(video, held, Ending(stream.clips, stream.duration_s, tuple(stream.warnings), source))


@dataclass
class _Worker:
    child: PipedProcess
    given: deque[int] = field(default_factory=deque)  # videos that it has not finished; it is at the first


def _messages(team: list[_Worker], paths: Sequence[Path]) -> Iterator[Piece | Unusable]:
    waiting = deque(enumerate(paths))
    for _ in range(_AHEAD):
        for worker in team:
            _give_next(worker, waiting, paths)
    while busy := {worker.child.pipe: worker for worker in team if worker.given}:
        for pipe in connection.wait(list(busy)):
            worker = busy[pipe]  # pyright: ignore[reportArgumentType]  wait returns what it was given
            message = _receive(worker, paths)
            if isinstance(message, Unusable) or message.ending is not None:
                worker.given.popleft()
                _give_next(worker, waiting, paths)
            yield message


def _give_next(worker: _Worker, waiting: deque[tuple[int, Path]], paths: Sequence[Path]) -> None:
    if not waiting:
        return
    job = waiting.popleft()
    worker.given.append(job[0])
    try:
        worker.child.pipe.send(job)
    except OSError as error:
        raise _death(worker, paths) from error


def _receive(worker: _Worker, paths: Sequence[Path]) -> Piece | Unusable:
    try:
        return worker.child.pipe.recv()
    except (EOFError, OSError) as error:
        raise _death(worker, paths) from error


def _death(worker: _Worker, paths: Sequence[Path]) -> InputError:
    worker.child.process.join()
    code = worker.child.process.exitcode
    return InputError(
        f"{paths[worker.given[0]]}: the process that decoded it died (exit code {code}; -9 is often a lack of memory): "
        "run again with fewer workers, or without this video"
    )


# ---------------------------------------------------------------- in the worker process


def _work(pipe: Connection, spec: FeatureSpec) -> None:
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the caller is gone
        while True:
            video, path = pipe.recv()
            for message in decode_pieces(video, path, spec, threads=1):
                pipe.send(message)
