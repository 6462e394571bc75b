"""Videos longer than the head takes: overlapping windows, each grounded on its own, and one answer made of theirs.

To the model a window is a whole video: it sees fractions of the window's length and nothing outside it. Therefore

- a moment that no other window sees stays as its window says, shifted in time;
- two windows *mean the same* moment when, of the clips that both see, their moments take the same ones (IoU of at
  least `SAME`). Of the two only one stays: that of the window whose border, of the two that cut the shared clips, lies
  further from it. It keeps its own score. A moment with less than `CREDIBLE` of the other's score replaces nothing;
- a moment that runs from outside the overlap into the border of its window, while its twin runs from the border of the
  next one out of the overlap, was cut: the two are one moment, from the start of the first to the end of the last, with
  the mean of their scores, over any number of windows. A moment runs into a border when it comes closer than `TOUCH` of
  the overlap, or than one clip;
- moments of one window are never merged with each other: that is left to postprocess.py, as for short videos;
- saliency is the mean of the windows' curves, weighted by the distance from the border of the window;
- presence is that of the window where it is largest: the event is in the video when it is in one of them.

Scores are probabilities and saliency cosines, neither relative to other moments or clips of the window; hence those of
different windows compare. Each moment is held against those of the windows that overlap its own, at most four: the cost
is linear in the length of the video. Shapes: T clips of the video, n clips of a window. Time is in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..contracts import Grounding, Moment, Window
from ..errors import InputError

OVERLAP = 0.25  # share of a window that the next one sees again, at least
SAME = 0.5
CREDIBLE = 0.5
TOUCH = 0.125
SMALLEST = 8  # clips a window: with fewer an overlap holds no moment


def require_window(size: int) -> None:
    """Raise InputError for a window of fewer than `SMALLEST` clips."""
    if size < SMALLEST:
        raise InputError(f"window: expected at least {SMALLEST} clips, got {size}")


def split(clips: int, size: int) -> tuple[Window, ...]:
    """Windows that cover `clips` clips: one when they fit into `size`, else all of `size` clips, evenly spread.

    Raises InputError for a size that `require_window` refuses.
    """
    require_window(size)
    if clips <= size:
        return (Window(0, clips),)
    step = size - math.ceil(OVERLAP * size)
    steps = math.ceil((clips - size) / step)
    starts = [i * (clips - size) // steps for i in range(steps + 1)]
    return tuple(Window(start, start + size) for start in starts)


def merge(windows: Sequence[Window], answers: Sequence[Grounding]) -> Grounding:
    """One answer to a query from those of all windows of a video, in which time 0 is the window's start.

    The answer of a single window is returned as it is.
    """
    if len(windows) == 1:
        return answers[0]
    query, clip_s = answers[0].query, answers[0].clip_s
    views = [_View.of(window, answer) for window, answer in zip(windows, answers, strict=True)]
    moments = sorted(_Merge(views, clip_s).moments(), key=lambda moment: -moment.score)
    saliency = blend(windows, [answer.saliency for answer in answers])
    presence = [answer.presence for answer in answers if answer.presence is not None]
    return Grounding(query, tuple(moments), saliency, clip_s, presence=max(presence, default=None))


def blend(windows: Sequence[Window], curves: Sequence[np.ndarray]) -> np.ndarray:
    """One value a clip, T float32, from the windows' curves (n each): equal to them where only one window is.

    Within an overlap it lies between them and passes from one to the other.
    """
    T = windows[-1].stop
    total, weight = np.zeros(T), np.zeros(T)
    for window, curve in zip(windows, curves, strict=True):
        n = window.clips
        middle = np.arange(n) + 0.5
        from_start = middle if window.start > 0 else np.full(n, float(n))  # the video's own ends cut nothing
        share = np.minimum(from_start, n - middle if window.stop < T else float(n))
        total[window.start : window.stop] += share * curve
        weight[window.start : window.stop] += share
    return (total / weight).astype(np.float32)


@dataclass(frozen=True)
class _View:
    """What one window says: its moments by descending score, in the video's time."""

    start_s: float  # of the window
    stop_s: float
    starts_s: np.ndarray
    stops_s: np.ndarray
    scores: np.ndarray

    @staticmethod
    def of(window: Window, answer: Grounding) -> _View:
        offset_s = window.start * answer.clip_s
        table = np.array([(m.start_s, m.end_s, m.score) for m in answer.moments]).reshape(-1, 3)
        starts_s, stops_s, scores = table.T
        return _View(offset_s, window.stop * answer.clip_s, starts_s + offset_s, stops_s + offset_s, scores)


_Place = tuple[int, int]  # a window and one of its moments


class _Merge:
    """The rules above, best moments first. A moment is taken once, as itself, as a part or as a duplicate."""

    def __init__(self, views: Sequence[_View], clip_s: float) -> None:
        self._views = views
        self._left = [np.ones(len(view.scores), bool) for view in views]  # moments that are not taken yet
        overlap_s = min(a.stop_s - b.start_s for a, b in pairwise(views))
        self._touch_s = max(TOUCH * overlap_s, clip_s)
        self._likeness = [
            {w: _same_moments(own, views[w]) for w in range(max(0, i - 2), min(len(views), i + 3))
             if w != i and views[w].start_s < own.stop_s and own.start_s < views[w].stop_s}
            for i, own in enumerate(views)
        ]  # fmt: skip

    def moments(self) -> list[Moment]:
        places = [(w, m) for w, view in enumerate(self._views) for m in range(len(view.scores))]
        found = []
        for place in sorted(places, key=lambda place: -self._score(place)):
            if self._left[place[0]][place[1]]:
                parts = self._joined(self._best_seen(place))
                self._take(parts)
                found.append(self._moment(parts))
        return found

    def _best_seen(self, place: _Place) -> _Place:
        """The place itself, or its twin in the window that sees the moment better."""
        twins = [twin for w in self._neighbours(place[0]) if (twin := self._twin(place, w))]
        better = [twin for twin in twins if self._room_s(twin, place[0]) > self._room_s(place, twin[0])]
        return max(better, key=self._least_room_s, default=place)

    def _joined(self, place: _Place) -> list[_Place]:
        """The parts of a moment that borders have cut, first to last."""
        parts = [place]
        while (twin := self._beyond(parts[-1], +1)) is not None:
            parts.append(twin)
        while (twin := self._beyond(parts[0], -1)) is not None:
            parts.insert(0, twin)
        return parts

    def _beyond(self, place: _Place, step: int) -> _Place | None:
        """How the moment goes on in the next window (+1) or the one before (-1); None when it ends in its own."""
        there = place[0] + step
        if not 0 <= there < len(self._views) or not self._is_cut(place, there):
            return None
        twin = self._twin(place, there)
        return twin if twin is not None and self._is_cut(twin, place[0]) else None

    def _is_cut(self, place: _Place, other: int) -> bool:
        """Whether a moment runs through all that its window shares with a neighbour."""
        if self._room_s(place, other) > self._touch_s:
            return False
        own, its = self._views[place[0]], self._views[other]
        if other > place[0]:
            return own.starts_s[place[1]] < its.start_s
        return own.stops_s[place[1]] > its.stop_s

    def _take(self, parts: Sequence[_Place]) -> None:
        for w, m in parts:
            self._left[w][m] = False
            for other in self._neighbours(w):
                self._left[other] &= ~self._same((w, m), other)

    def _moment(self, parts: Sequence[_Place]) -> Moment:
        (first, a), (last, b) = parts[0], parts[-1]
        score = self._score(parts[0]) if len(parts) == 1 else float(np.mean([self._score(place) for place in parts]))
        return Moment(float(self._views[first].starts_s[a]), float(self._views[last].stops_s[b]), score)

    def _neighbours(self, window: int) -> Iterable[int]:
        """Windows that overlap this one: never more than two on a side."""
        return self._likeness[window].keys()

    def _twin(self, place: _Place, window: int) -> _Place | None:
        """The best moment left of another window that means the same and is credible beside it."""
        view = self._views[window]
        fits = self._same(place, window) & self._left[window] & (view.scores >= CREDIBLE * self._score(place))
        return (window, int(np.argmax(fits))) if fits.any() else None

    def _same(self, place: _Place, window: int) -> np.ndarray:
        """Which moments of another window mean the same as one of ours."""
        return self._likeness[place[0]][window][place[1]]

    def _room_s(self, place: _Place, window: int) -> float:
        """From a moment to the border of its window that lies in the other one."""
        view = self._views[place[0]]
        if window > place[0]:
            return view.stop_s - float(view.stops_s[place[1]])
        return float(view.starts_s[place[1]]) - view.start_s

    def _least_room_s(self, place: _Place) -> float:
        return min(self._room_s(place, other) for other in self._neighbours(place[0]))

    def _score(self, place: _Place) -> float:
        return float(self._views[place[0]].scores[place[1]])


def _same_moments(ours: _View, theirs: _View) -> np.ndarray:
    """Which moments of two windows mean the same: bool, a row for each of ours and a column for each of theirs."""
    from_s, to_s = max(ours.start_s, theirs.start_s), min(ours.stop_s, theirs.stop_s)
    start_s, stop_s = (np.clip(times_s, from_s, to_s)[:, None] for times_s in (ours.starts_s, ours.stops_s))
    starts_s, stops_s = np.clip(theirs.starts_s, from_s, to_s), np.clip(theirs.stops_s, from_s, to_s)
    shared_s = np.clip(np.minimum(stops_s, stop_s) - np.maximum(starts_s, start_s), 0, None)
    union_s = (stop_s - start_s) + (stops_s - starts_s) - shared_s
    return (shared_s > 0) & (shared_s >= SAME * union_s)
