"""What indexing one video is, for every engine: encode it and write its file. Results go into the store alone.

A worker may be killed at any time: its video is given to another one. Work is done at least once, and a video's file,
which is written aside and renamed, makes that once in the store.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..grounding.bundle import Bundle
from ..grounding.grounder import Grounder
from ..media.containers import source_digest
from .store import Store, stored_arrays


@dataclass(frozen=True)
class Task:
    """A video to index."""

    vid: str
    path: str  # absolute: a worker may run elsewhere


@dataclass(frozen=True)
class Done:
    """What came of it."""

    vid: str
    clips: int  # 0 where it failed
    reason: str = ""  # why it failed, one line


class Indexer:
    """Indexes videos, with models that are opened once: one a worker process.

    Raises what opening a bundle and a store does.
    """

    def __init__(self, bundle: Path, store: Path, threads: int | None) -> None:
        opened = Bundle.open(bundle)
        self._store = Store.open(store)
        self._store.require(opened)
        self._grounder = Grounder(opened, threads)

    def __call__(self, task: Task) -> Done:
        """Write the video's file. Raises InputError when the store cannot be written; a bad video is a Done."""
        path = Path(task.path)
        source = source_digest(path)  # before it is read: what is there later may be another file
        try:
            encoded = self._grounder.encode(path)
            arrays = stored_arrays(encoded, path)
        except InputError as error:
            return Done(task.vid, 0, str(error))
        self._store.write(task.vid, encoded, arrays, source, path)
        return Done(task.vid, len(encoded.features))
