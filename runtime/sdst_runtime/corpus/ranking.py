"""All vectors of a store in one file, and the order of its videos by alignment with a sentence.

    STORE/ranking.json        ids, clips and digests of the videos, in the order of their vectors
    STORE/ranking-ID.npy      N K F int8, mapped into memory and read from its start to its end by every question

Alignment of a video: the largest, over its clips, of the mean, over the steps, of cosine(projected clip, pooled
projected sentence). Mean of the steps, because it was better than the last step alone (docs/corpus.md). The scan is
exact: no video is left out of it. Shapes: Q sentences, V videos, N clips of all windows, K steps, F width.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import ContractError, InputError
from ..files import atomic_path, remove, write_json
from ..strict_json import read_strict
from .store import SCALE, Store

LIST = "ranking.json"
FORMAT = 1
ROWS = 8192  # clips whose vectors are float32 at a time
_MEND = "run  sdst corpus index  again"


@dataclass(frozen=True)
class Ranked:
    """A video of the ranking."""

    vid: str
    clips: int  # N of this video
    source: str  # digest of its video file, as its own file in the store states it


@dataclass(frozen=True)
class RankingList:
    """ranking.json."""

    format: int
    vectors: str  # file name
    shape: tuple[int, int, int]  # N K F
    videos: tuple[Ranked, ...]


@dataclass(frozen=True, eq=False)
class Ranking:
    """Videos and their vectors."""

    videos: tuple[Ranked, ...]
    vectors: np.ndarray  # N K F int8, in a file

    @classmethod
    def open(cls, store: Store) -> Ranking:
        """Raises InputError when it is missing, damaged or not that of the store."""
        path = store.directory / LIST
        if not path.is_file():
            raise InputError(f"{store.directory}: has no {LIST}, its indexing did not end; {_MEND}")
        listed = read_strict(RankingList, path, _MEND)
        if listed.format != FORMAT:
            raise ContractError(f"{path}: format {listed.format}, this sdst reads {FORMAT}; {_MEND}")
        if Path(listed.vectors).name != listed.vectors:
            raise InputError(f"{path}: expected the name of a file, got {listed.vectors!r:.80}; {_MEND}")
        file = store.directory / listed.vectors
        try:
            vectors = np.load(file, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{file}: cannot be read ({error}); {_MEND}") from error
        clips = sum(video.clips for video in listed.videos)
        if vectors.dtype != np.int8 or vectors.shape != tuple(listed.shape) or len(vectors) != clips or not clips:
            raise InputError(f"{file}: expected {listed.shape} int8, got {vectors.shape} {vectors.dtype}; {_MEND}")
        return cls(listed.videos, vectors)

    def alignment(self, sentences: np.ndarray) -> np.ndarray:
        """Q V float32, in -1..1, of sentences Q K F float32 of length one.

        Raises InputError for sentences of other shapes than the vectors.
        """
        if sentences.shape[1:] != self.vectors.shape[1:]:
            raise InputError(f"sentences: expected Q {self.vectors.shape[1:]}, got {sentences.shape}; {_MEND}")
        steps = sentences.shape[1]
        weights = sentences.reshape(len(sentences), -1).T.astype(np.float32) / (SCALE * steps)
        clips = [video.clips for video in self.videos]
        parts = []
        for videos, rows in _blocks(clips):
            block = self.vectors[rows].reshape(rows.stop - rows.start, -1).astype(np.float32)
            starts = np.cumsum([0, *clips[videos]][:-1])
            parts.append(np.maximum.reduceat(block @ weights, starts, axis=0))
        return np.concatenate(parts).T


def write_ranking(store: Store, ids: Sequence[str]) -> int:
    """Put the vectors of these videos, which have files, into one; returns how many clips they are.

    Raises InputError when a file is damaged or the store cannot be written.
    """
    old = {path.name for path in store.directory.glob("ranking-*.npy")}
    name = f"ranking-{secrets.token_hex(8)}.npy"
    shape = store.read(ids[0]).vectors.shape[1:]
    videos: list[Ranked] = []
    with atomic_path(store.directory / name) as temporary, temporary.open("wb") as file:
        file.write(b"\0" * _HEADER)  # numpy's header says how many clips follow, which the end knows
        for vid in ids:
            stored = store.read(vid)
            if stored.vectors.shape[1:] != shape:
                raise InputError(f"{store.path(vid)}: expected vectors of {shape}, got {stored.vectors.shape[1:]}")
            file.write(np.ascontiguousarray(stored.vectors).data)
            videos.append(Ranked(vid, len(stored.vectors), stored.source))
        clips = sum(video.clips for video in videos)
        file.seek(0)
        file.write(_header((clips, *shape)))
    listed = RankingList(FORMAT, name, (clips, shape[0], shape[1]), tuple(videos))
    write_json(store.directory / LIST, dataclasses.asdict(listed))
    for other in old:
        remove(store.directory / other)
    return clips


_HEADER = 128  # bytes


def _header(shape: tuple[int, ...]) -> bytes:
    """Of a .npy file of int8, version 1.0, _HEADER bytes long: numpy/lib/format.py."""
    text = repr({"descr": "|i1", "fortran_order": False, "shape": shape})
    return b"\x93NUMPY\x01\x00" + (_HEADER - 10).to_bytes(2, "little") + text.ljust(_HEADER - 11).encode() + b"\n"


def _blocks(clips: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Whole videos of about ROWS clips together: (videos, their rows)."""
    first = begin = end = 0
    for video, count in enumerate(clips):
        if end > begin and end + count - begin > ROWS:
            yield slice(first, video), slice(begin, end)
            first, begin = video, end
        end += count
    if end > begin:
        yield slice(first, len(clips)), slice(begin, end)
