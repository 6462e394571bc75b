"""Indexing a corpus: what is missing or has changed is made, everything else stays; then the ranking of all.

The state of the work is the store: an interrupted run goes on where it ended, and nothing else need be kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..errors import ContractError, InputError
from ..files import make_directory
from ..grounding.bundle import Bundle
from ..media.containers import source_digest
from .engines import Engine, run, shared_threads
from .ranking import write_ranking
from .store import Store, StoredVideo, claimed
from .team import Died
from .work import Done, Indexer, Task


@dataclass(frozen=True)
class IndexedCorpus:
    """What a run did. Lists are of ids but `failed`, of reasons, and `damaged`, of what was wrong."""

    kept: tuple[str, ...]  # made before, from videos that are the same
    made: tuple[str, ...]
    failed: tuple[str, ...]  # a line a video
    damaged: tuple[str, ...]  # files that were made again, a line each
    videos: int  # of the whole store, with those of other runs
    clips: int  # of all of its windows


class Listener:
    """Hears of the work; each method does nothing unless it is overridden."""

    def checked(self, done: int, total: int) -> None:
        """Files of the store that were read."""

    def indexed(self, done: Done, count: int, total: int) -> None:
        """A video was indexed or failed: the `count`-th of `total`."""


def index_corpus(
    videos: Mapping[str, Path], bundle: Bundle, directory: Path, *, engine: Engine = "local", workers: int = 1,
    listener: Listener | None = None,
) -> IndexedCorpus:  # fmt: skip
    """Bring the store in `directory` up to date with `videos`, by id; those of other runs stay in it.

    `workers` processes share the cores; each opens the models. Raises InUseError when another process writes into the
    store, ContractError when another bundle made it or `bundle` has no sentence model, InputError when it cannot be
    written or a video's id is in the store for another file that is still there.
    """
    if workers < 1:
        raise InputError(f"workers: expected at least 1, got {workers}")
    bundle.path("sentence")
    listener = listener or Listener()
    make_directory(directory / "videos")
    with claimed(directory):
        store = Store.make(directory, bundle)
        plan = _plan(store, videos, listener)
        made, failed = [], []
        for count, done in enumerate(_run(plan.todo, bundle, store, engine, workers), 1):
            if done.reason:
                failed.append(done.reason)
            else:
                made.append(done.vid)
            listener.indexed(done, count, len(plan.todo))
        ids = _whole(store, {*plan.kept, *made}, plan.damaged)
        clips = write_ranking(store, ids) if ids else 0
    return IndexedCorpus(tuple(plan.kept), tuple(sorted(made)), tuple(failed), tuple(plan.damaged), len(ids), clips)


@dataclass(frozen=True)
class _Plan:
    kept: list[str]
    todo: list[Task]
    damaged: list[str]


def _plan(store: Store, videos: Mapping[str, Path], listener: Listener) -> _Plan:
    plan = _Plan([], [], [])
    for count, (vid, path) in enumerate(videos.items(), 1):
        stored = _stored(store, vid, plan.damaged)
        if stored is not None and stored.source == (source := source_digest(path)) and source:
            plan.kept.append(vid)
        else:
            if stored is not None:
                _require_same(vid, path, stored)
            plan.todo.append(Task(vid, str(path.absolute())))
        listener.checked(count, len(videos))
    return plan


def _stored(store: Store, vid: str, damaged: list[str]) -> StoredVideo | None:
    """What the store has of a video, None where it has nothing that can be used."""
    if not store.path(vid).is_file():
        return None
    try:
        return store.read(vid)
    except (InputError, ContractError) as error:
        damaged.append(str(error))
        return None


def _require_same(vid: str, path: Path, stored: StoredVideo) -> None:
    """Raise InputError when a store's video is another file than `path`, and that file is still as it was."""
    before = Path(stored.path)
    if before.absolute() != path.absolute() and source_digest(before) == stored.source:
        raise InputError(f"{before} and {path} are both video {vid!r} of the store: rename one or use another store")


def _whole(store: Store, known: set[str], damaged: list[str]) -> list[str]:
    """Videos of the store with a sound file, sorted; `known` were read or made just now."""
    return [vid for vid in store.ids() if vid in known or _stored(store, vid, damaged) is not None]


def _run(tasks: Sequence[Task], bundle: Bundle, store: Store, engine: Engine, workers: int) -> Iterator[Done]:
    if not tasks:
        return
    folders = bundle.directory.absolute(), store.directory.absolute()
    for place, done in run(tasks, partial(Indexer, *folders, shared_threads(workers)), engine, workers):
        task = tasks[place]
        if isinstance(done, Died):
            yield Done(task.vid, 0, f"{task.path}: {done}; index it with fewer workers, or leave it out")
        else:
            yield done
