"""Asking a corpus: videos are ordered by alignment, and in the best of them the head finds the moment.

The head's own score does not order videos: it says how sure a moment is among those of its video (docs/corpus.md).
Shapes: Q sentences, K steps, F width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..contracts import ProjectedVideo
from ..errors import InputError
from ..grounding.bundle import Bundle
from ..grounding.decode import require_finite
from ..grounding.grounder import Grounder
from ..grounding.inputs import require_queries
from ..sessions.base import PROJECTED, SENTENCE, ClosedAtEnd, Session
from .ranking import Ranking
from .store import Store

AT_ONCE = 32  # sentences that share a scan, and whose best videos are in memory together


@dataclass(frozen=True)
class Row:
    """One answer: a video for a query, and its best moment."""

    query: str
    video: str  # id
    rank: int  # of the video for the query, from 1
    alignment: float  # -1..1
    start_s: float
    end_s: float
    score: float  # 0..1, of the moment


class Corpus(ClosedAtEnd):
    """A store that can be asked, with the models of its bundle. A context manager; closed at its end."""

    def __init__(self, store: Store, bundle: Bundle, threads: int | None = None) -> None:
        """`threads` for each model. Raises ContractError when the bundle did not make the store, or has no sentence
        model, and InputError when the store has no ranking.
        """
        store.require(bundle)
        self.store, self.ranking = store, Ranking.open(store)
        self.sentence = bundle.session("sentence", threads)
        self.grounder = Grounder(bundle, threads, vision=False)
        self._type = self.grounder.grounding_model.head.inputs[PROJECTED].dtype

    @classmethod
    def open(cls, directory: str | Path, bundle: str | Path | None = None, threads: int | None = None) -> Corpus:
        """A store and its bundle, by default the one that it names."""
        store = Store.open(Path(directory))
        return cls(store, Bundle.open(bundle or store.facts.bundle), threads)

    def ask(self, queries: Sequence[str], top: int = 20) -> list[Row]:
        """For each query, in order, the `top` best videos, best first. All are compared with all videos.

        Raises InputError for a sentence that cannot be used, before any model runs.
        """
        if top < 1:
            raise InputError(f"top: expected at least 1, got {top}")
        require_queries(queries)
        for query in queries:
            self.grounder.check(query)
        parts = [list(queries[start : start + AT_ONCE]) for start in range(0, len(queries), AT_ONCE)]
        return [row for part in parts for row in self._ask(part, top)]

    def sentences(self, queries: Sequence[str]) -> np.ndarray:
        """Q K F float32: what the clips are compared with."""
        return pooled_sentences(self.grounder, self.sentence, queries)

    def close(self) -> None:
        """Give back what the models hold; a second call does nothing."""
        self.sentence.close()
        self.grounder.close()

    def _ask(self, queries: Sequence[str], top: int) -> list[Row]:
        alignment = self.ranking.alignment(self.sentences(queries))
        best = np.argsort(-alignment, axis=1, kind="stable")[:, :top]  # Q top, indices of videos
        wanted = [int(video) for video in np.unique(best)]
        asked = [[place for place in range(len(queries)) if video in best[place]] for video in wanted]
        jobs = [(self._projected(video), [queries[place] for place in places]) for video, places in zip(wanted, asked)]
        found = {
            (place, video): answer.moments[0]
            for video, places, answers in zip(wanted, asked, self.grounder.ground_many(jobs))
            for place, answer in zip(places, answers)
        }
        rows = []
        for place, query in enumerate(queries):
            for rank, video in enumerate(map(int, best[place]), 1):
                moment, vid = found[place, video], self.ranking.videos[video].vid
                aligned = float(alignment[place, video])
                rows.append(Row(query, vid, rank, aligned, moment.start_s, moment.end_s, moment.score))
        return rows

    def _projected(self, number: int) -> ProjectedVideo:
        listed = self.ranking.videos[number]
        stored = self.store.read(listed.vid)
        if stored.source != listed.source:
            raise InputError(
                f"{self.store.path(listed.vid)}: is newer than the ranking of the store; run  sdst corpus index  again"
            )
        pieces = tuple(piece.astype(self._type) for piece in stored.video.projected)
        return replace(stored.video, projected=pieces)


def pooled_sentences(grounder: Grounder, sentence: Session, queries: Sequence[str]) -> np.ndarray:
    """Q K F float32, of length one: sentences as clips are compared with them. Raises SessionError unless finite."""
    found = []
    for start in range(0, len(queries), grounder.most_rows):
        text, mask = grounder.read(queries[start : start + grounder.most_rows])
        found.append(sentence.run({"text": text, "text_mask": mask})[SENTENCE])
        require_finite(grounder.bundle.manifest.models["sentence"], SENTENCE, found[-1])
    return np.concatenate(found)
