"""Asking a corpus: videos are ordered by alignment, and in the best of them the head finds the moment.

The head's own score does not order videos: it says how sure a moment is among those of its video (docs/corpus.md).
The head's work is cut into batches before workers are asked for: a row's last bits may depend on what shares its batch,
but not on who computes it. Shapes: Q sentences, K steps, F width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ..contracts import Moment, ProjectedVideo
from ..errors import InputError, SessionError
from ..grounding.bundle import Bundle
from ..grounding.decode import require_finite
from ..grounding.grounder import Grounder
from ..grounding.inputs import require_queries
from ..sessions.base import PROJECTED, SENTENCE, ClosedAtEnd, Session
from .engines import Engine, run, shared_threads
from .ranking import Ranked, Ranking
from .store import Store
from .team import Died

AT_ONCE = 32  # sentences that share a scan


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
    presence: float | None = None  # 0..1, that the video shows it at all; None: the bundle does not say


@dataclass(frozen=True)
class Found:
    """What the head says of a video and a sentence."""

    moment: Moment  # the best
    presence: float | None


@dataclass(frozen=True)
class Question:
    """A sentence about one video of the store."""

    video: Ranked
    query: str


class AskListener:
    """Hears of the work; each method does nothing unless it is overridden."""

    def ranked(self, done: int, total: int) -> None:
        """Sentences that were compared with all videos."""

    def found(self, done: int, total: int) -> None:
        """Videos of all sentences in which the moment was found."""


class Head:
    """Finds moments: one a worker process. Raises what opening a bundle and a store does."""

    def __init__(self, bundle: Path, store: Path, threads: int | None) -> None:
        self._store = Store.open(store)
        self._grounder = Grounder(bundle, threads, vision=False)

    def __call__(self, batch: Sequence[Question]) -> list[Found]:
        """What is found for each question. Raises InputError when a file is damaged or newer than the ranking."""
        return find(self._grounder, self._store, batch)


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
        self._threads = threads

    @classmethod
    def open(cls, directory: str | Path, bundle: str | Path | None = None, threads: int | None = None) -> Corpus:
        """A store and its bundle, by default the one that it names. Raises InputError when that is gone."""
        store = Store.open(Path(directory))
        if bundle is None and not Path(store.facts.bundle).is_dir():
            raise InputError(
                f"{directory}: its bundle is no longer {store.facts.bundle}; say where it is with --bundle"
            )
        return cls(store, Bundle.open(bundle or store.facts.bundle), threads)

    def ask(
        self, queries: Sequence[str], top: int = 20, *, engine: Engine = "local", workers: int = 1,
        listener: AskListener | None = None,
    ) -> list[Row]:  # fmt: skip
        """For each query, in order, the `top` best videos, best first. All are compared with all videos.

        More than one worker, or those of Ray, share the work of the head, each with its own; the rows are the same.
        Raises InputError for a sentence that cannot be used, before any model runs, and what the workers raise.
        """
        if top < 1:
            raise InputError(f"top: expected at least 1, got {top}")
        if workers < 1:
            raise InputError(f"workers: expected at least 1, got {workers}")
        require_queries(queries)
        for query in queries:
            self.grounder.check(query)
        listener = listener or AskListener()
        ranked: list[tuple[Question, int, float]] = []
        for start in range(0, len(queries), AT_ONCE):
            ranked += self._rank(queries[start:][:AT_ONCE], top)
            listener.ranked(min(start + AT_ONCE, len(queries)), len(queries))
        batches = _batches([question for question, _, _ in ranked], self.grounder.most_rows)
        answers = self._answers(batches, engine, workers, listener)
        return [_row(question, rank, aligned, answers[question]) for question, rank, aligned in ranked]

    def sentences(self, queries: Sequence[str]) -> np.ndarray:
        """Q K F float32: what the clips are compared with."""
        return pooled_sentences(self.grounder, self.sentence, queries)

    def close(self) -> None:
        """Give back what the models hold; a second call does nothing."""
        self.sentence.close()
        self.grounder.close()

    def _rank(self, queries: Sequence[str], top: int) -> list[tuple[Question, int, float]]:
        """(question, rank of its video, alignment) of the best videos for each query."""
        alignment = self.ranking.alignment(self.sentences(queries))
        best = np.argsort(-alignment, axis=1, kind="stable")[:, :top]  # Q top, places of videos
        return [
            (Question(self.ranking.videos[video], query), rank, float(alignment[place, video]))
            for place, query in enumerate(queries)
            for rank, video in enumerate(map(int, best[place]), 1)
        ]

    def _answers(
        self, batches: Sequence[Sequence[Question]], engine: Engine, workers: int, listener: AskListener
    ) -> dict[Question, Found]:
        answers: dict[Question, Found] = {}
        total = sum(map(len, batches))
        for place, found in self._work(batches, engine, workers):
            if isinstance(found, Died):
                raise SessionError(f"asking {len(batches[place])} questions: {found}; ask with fewer workers")
            answers.update(zip(batches[place], found, strict=True))
            listener.found(len(answers), total)
        return answers

    def _work(
        self, batches: Sequence[Sequence[Question]], engine: Engine, workers: int
    ) -> Iterable[tuple[int, list[Found] | Died]]:
        if engine == "local" and workers == 1:
            return ((place, find(self.grounder, self.store, batch)) for place, batch in enumerate(batches))
        folders = self.grounder.bundle.directory.absolute(), self.store.directory.absolute()
        return run(batches, partial(Head, *folders, self._threads or shared_threads(workers)), engine, workers)


def find(grounder: Grounder, store: Store, batch: Sequence[Question]) -> list[Found]:
    """What is found for each question, from one batch. Raises what `Head` does."""
    asked: dict[Ranked, list[str]] = defaultdict(list)
    for question in batch:
        asked[question.video].append(question.query)
    answers = grounder.ground_many([(_projected(grounder, store, video), queries) for video, queries in asked.items()])
    found = {
        Question(video, answer.query): Found(answer.moments[0], answer.presence)
        for video, about in zip(asked, answers)
        for answer in about
    }
    return [found[question] for question in batch]


def _row(question: Question, rank: int, alignment: float, found: Found) -> Row:
    best = found.moment
    return Row(
        question.query, question.video.vid, rank, alignment, best.start_s, best.end_s, best.score, found.presence
    )  # fmt: skip


def _batches(questions: Sequence[Question], rows: int) -> list[list[Question]]:
    """Every question once, in batches of videos of about one length."""
    order = sorted(dict.fromkeys(questions), key=lambda question: question.video.clips)
    return [order[start : start + rows] for start in range(0, len(order), rows)]


def _projected(grounder: Grounder, store: Store, video: Ranked) -> ProjectedVideo:
    stored = store.read(video.vid)
    if stored.source != video.source:
        raise InputError(
            f"{store.path(video.vid)}: is newer than the ranking of the store; run  sdst corpus index  again"
        )
    kind = grounder.grounding_model.head.inputs[PROJECTED].dtype
    return replace(stored.video, projected=tuple(piece.astype(kind) for piece in stored.video.projected))


def pooled_sentences(grounder: Grounder, sentence: Session, queries: Sequence[str]) -> np.ndarray:
    """Q K F float32, of length one: sentences as clips are compared with them. Raises SessionError unless finite."""
    found = []
    for start in range(0, len(queries), grounder.most_rows):
        text, mask = grounder.read(queries[start : start + grounder.most_rows])
        found.append(sentence.run({"text": text, "text_mask": mask})[SENTENCE])
        require_finite(grounder.bundle.manifest.models["sentence"], SENTENCE, found[-1])
    return np.concatenate(found)
