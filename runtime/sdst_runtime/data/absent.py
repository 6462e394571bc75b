"""Queries about what is not in the video: sentences of other videos, drawn so that they are not true of this one.

A row of an annotation file may say so itself: `"absent": true` and no window. Others are drawn. What keeps a sentence
from being drawn for a video:

- where both rows name what they are about (`event`, any text) and what their video shows (`video_events`, a list of
  such texts, its own sentences' among them): the video shows the sentence's event;
- elsewhere: the sentence shares half of its words or more with a sentence of the video (Jaccard index of the sets).
  Sentences of a video that nobody wrote down cannot be known: some of what is drawn will be true.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..errors import InputError
from .annotations import is_absent
from .dataset import Sample

ALIKE = 0.5  # Jaccard index from which on two sentences may mean the same
TRIES = 100  # sentences looked at for one video


class AbsentQueries:
    """Draws queries without a moment from the videos and sentences of some samples."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._present = [sample for sample in samples if not is_absent(sample.row)]
        self._absent = len(samples) - len(self._present)
        self._words = [_words(sample.row["query"]) for sample in self._present]
        self._of_video: dict[str, list[int]] = defaultdict(list)
        for i, sample in enumerate(self._present):
            self._of_video[sample.row["vid"]].append(i)
        self._shown = {
            vid: {event for i in own for event in self._present[i].row.get("video_events", ())}
            for vid, own in self._of_video.items()
        }

    def count(self, share: float) -> int:
        """How many more make up `share` of all queries, themselves and those that are absent already among these."""
        return max(0, round(share / (1 - share) * len(self._present)) - self._absent)

    def draw(self, count: int, rng: np.random.Generator) -> list[Sample]:
        """`count` samples without windows, each of a video and another one's sentence; their qids are "absent 0" on.

        Raises InputError when no sentence can be found, as among samples of one video.
        """
        return [self._one(number, rng) for number in range(count)]

    def _one(self, number: int, rng: np.random.Generator) -> Sample:
        for _ in range(TRIES):
            video, sentence = rng.integers(len(self._present), size=2)
            if not self._may_be_true(int(sentence), self._present[video].row["vid"]):
                return self._joined(number, self._present[video], self._present[sentence])
        raise InputError(
            f"negatives: of {TRIES} pairs of a video and a sentence each sentence may be true of its video; give more "
            "videos, or set data.negatives to 0"
        )

    def _may_be_true(self, sentence: int, vid: str) -> bool:
        row = self._present[sentence].row
        if row["vid"] == vid:
            return True
        if row.get("event") and self._shown[vid]:
            return row["event"] in self._shown[vid]
        words = self._words[sentence]
        return any(_alike(words, self._words[own]) for own in self._of_video[vid])

    @staticmethod
    def _joined(number: int, video: Sample, sentence: Sample) -> Sample:
        row = {
            "qid": f"absent {number}",
            "query": sentence.row["query"],
            "vid": video.row["vid"],
            "duration": video.row["duration"],
            "relevant_windows": [],
            "absent": True,
        }
        nothing = np.zeros_like(video.saliency)
        return replace(video, row=row, text=sentence.text, windows=video.windows[:0], saliency=nothing)


def with_absent(samples: Sequence[Sample], share: float, seed: int = 0) -> list[Sample]:
    """The samples and, where none of them is absent yet, drawn ones that make up `share` of all: always the same.

    Where qids are numbers those of the drawn ones go on from the largest. Raises InputError as `AbsentQueries.draw`.
    """
    if share == 0 or any(is_absent(sample.row) for sample in samples):
        return list(samples)
    queries = AbsentQueries(samples)
    drawn = queries.draw(queries.count(share), np.random.default_rng(seed))
    qids = [sample.row["qid"] for sample in samples]
    if all(isinstance(qid, int) for qid in qids):
        first = max(qids) + 1
        drawn = [replace(one, row=one.row | {"qid": first + i}) for i, one in enumerate(drawn)]
    return [*samples, *drawn]


def _words(sentence: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", sentence.lower()))


def _alike(one: frozenset[str], other: frozenset[str]) -> bool:
    return len(one & other) >= ALIKE * len(one | other)
