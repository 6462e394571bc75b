"""Predictions and annotations as padded arrays, checked; what the metrics compute on.

Rows keep the order of the predictions. Shape letters: N queries, P predicted windows, G annotated windows,
C clips of the longest video, A annotators of the saliency. Windows are seconds, saliency is 0..4 (higher is better).
Every InputError names the query (qid) that is wrong and says what to mend.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.annotations import Row
from ..errors import InputError


@dataclass(frozen=True)
class Windows:
    """Windows by query, first those that are `there`; the other entries only fill the table."""

    start_s: np.ndarray  # N W, float64
    end_s: np.ndarray  # N W
    score: np.ndarray  # N W, zero in annotations
    there: np.ndarray  # N W, bool


@dataclass(frozen=True)
class Saliency:
    """A value for each clip of each query's video, zero beyond `clips`."""

    scores: np.ndarray  # N C (predictions) or N C A (annotations), float64
    clips: np.ndarray  # N, how many of C are the video's (or were predicted)


def pair(predictions: Sequence[Row], ground_truth: Sequence[Row]) -> list[Row]:
    """The annotations in the order of the predictions; both must hold the same qids, each once."""
    if not predictions:
        raise InputError("predictions are empty; give one row for each annotated query")
    predicted, annotated = _by_qid(predictions, "predictions"), _by_qid(ground_truth, "ground truth")
    missing = [qid for qid in annotated if qid not in predicted]
    unknown = [qid for qid in predicted if qid not in annotated]
    if missing:
        raise InputError(
            f"predictions lack {len(missing)} of {len(annotated)} qids, {_some(missing)}; predict them all"
        )
    if unknown:
        raise InputError(f"predictions hold {len(unknown)} qids unknown to the ground truth, {_some(unknown)}")
    return [annotated[qid] for qid in predicted]


def predicted_windows(predictions: Sequence[Row], most: int) -> Windows:
    """The first `most` windows of each prediction, as listed."""

    def fault(windows: Any) -> str:
        if not isinstance(windows, list | tuple) or len(windows) == 0:
            return "expected a list with one window [start, end, score] or more"
        for number, window in enumerate(windows[:most]):
            if not _is_numbers(window, 3):
                return f"window {number} must be three finite numbers [start, end, score], got {window!r:.80}"
            if window[1] < window[0]:
                return f"window {number} ends before it starts, got {window!r:.80}"
        return ""

    return _windows(predictions, "pred_relevant_windows", 3, most, "prediction", fault)


def annotated_windows(ground_truth: Sequence[Row]) -> Windows:
    """All relevant windows of each query."""

    def fault(windows: Any) -> str:
        if not isinstance(windows, list | tuple) or len(windows) == 0:
            return "expected a list with one window [start, end] or more"
        for number, window in enumerate(windows):
            if not _is_numbers(window, 2):
                return f"window {number} must be two finite numbers [start, end], got {window!r:.80}"
            if window[1] <= window[0]:
                return f"window {number} must end after it starts, got {window!r:.80}"
        return ""

    return _windows(ground_truth, "relevant_windows", 2, None, "ground truth", fault)


def in_range(windows: Windows, longer_s: float, up_to_s: float) -> Windows:
    """The same windows, of which only those with longer_s < length <= up_to_s are there."""
    length_s = windows.end_s - windows.start_s
    there = windows.there & (length_s > longer_s) & (length_s <= up_to_s)
    order = np.argsort(~there, axis=1, kind="stable")  # those that stay come first, in their order
    parts = (windows.start_s, windows.end_s, windows.score, there)
    return Windows(*(np.take_along_axis(part, order, axis=1) for part in parts))


def take(windows: Windows, rows: np.ndarray | slice, most: int | None = None) -> Windows:
    """The first `most` windows of some queries; `rows` are indices into N or a slice of it."""
    parts = (windows.start_s, windows.end_s, windows.score, windows.there)
    return Windows(*(part[rows, :most] for part in parts))


def predicted_saliency(predictions: Sequence[Row]) -> Saliency:
    """`pred_saliency_scores` of each prediction."""
    rows = [row.get("pred_saliency_scores") for row in predictions]

    def fault(scores: Any) -> str:
        fits = isinstance(scores, list | tuple) and len(scores) > 0 and _is_numbers(scores, len(scores))
        return "" if fits else "expected a list of finite numbers, one a clip"

    counts, flat = _flatten(predictions, rows, "pred_saliency_scores", "prediction", None, fault)
    scores = np.zeros((len(rows), counts.max()))
    scores[_places(counts)] = flat
    return Saliency(scores, counts)


def annotated_saliency(ground_truth: Sequence[Row], clip_s: float) -> Saliency:
    """N C A from `duration`, `relevant_clip_ids` and `saliency_scores`; clips that are not listed have 0."""
    first = ground_truth[0].get("saliency_scores") or [[]]
    annotators = len(first[0]) if isinstance(first[0], list | tuple) else 0
    if not annotators:
        raise InputError(f"ground truth qid {ground_truth[0]['qid']!r}: saliency_scores must list annotators by clip")
    clips = np.array([_clips(row, clip_s) for row in ground_truth])
    rows = [row.get("saliency_scores") for row in ground_truth]

    def fault(scores: Any) -> str:
        fits = isinstance(scores, list | tuple) and all(_is_numbers(clip, annotators) for clip in scores)
        return "" if fits else f"expected {annotators} finite numbers for each relevant clip"

    counts, flat = _flatten(ground_truth, rows, "saliency_scores", "ground truth", annotators, fault)
    ids = [row.get("relevant_clip_ids") for row in ground_truth]

    def fault_of_ids(values: Any) -> str:
        fits = isinstance(values, list | tuple) and len(values) > 0 and _is_numbers(values, len(values))
        return "" if fits else "expected a list of clip numbers"

    id_counts, flat_ids = _flatten(ground_truth, ids, "relevant_clip_ids", "ground truth", None, fault_of_ids)
    wrong = id_counts != counts
    if wrong.any():
        qid = ground_truth[int(wrong.argmax())]["qid"]
        raise InputError(f"ground truth qid {qid!r}: relevant_clip_ids and saliency_scores differ in length")
    queries, _ = _places(counts)
    wrong = (flat_ids < 0) | (flat_ids >= clips[queries]) | (flat_ids != np.floor(flat_ids))
    if wrong.any():
        query = int(queries[wrong.argmax()])
        qid, last = ground_truth[query]["qid"], clips[query] - 1
        raise InputError(f"ground truth qid {qid!r}: relevant_clip_ids must be integers from 0 to {last}")
    scores = np.zeros((len(rows), clips.max(), annotators))
    scores[queries, flat_ids.astype(np.int64)] = flat
    return Saliency(scores, clips)


def holds(rows: Sequence[Row], key: str, what: str) -> bool:
    """Whether the rows have a non-empty `key`: all or none, InputError naming the first that differs."""
    have = [bool(row.get(key)) for row in rows]
    if any(have) and not all(have):
        raise InputError(f"{what} qid {rows[have.index(False)]['qid']!r}: lacks {key}, which others have")
    return all(have)


# ---------------------------------------------------------------- private


def _by_qid(rows: Sequence[Row], what: str) -> dict[Any, Row]:
    found: dict[Any, Row] = {}
    for number, row in enumerate(rows):
        qid = row.get("qid")
        if not isinstance(qid, int | str):
            raise InputError(f"{what}: row {number} needs a qid, an integer or a string, got {qid!r:.80}")
        if qid in found:
            raise InputError(f"{what}: qid {qid!r} occurs twice; keep one row a query")
        found[qid] = row
    return found


def _some(qids: list[Any]) -> str:
    return f"first {', '.join(repr(qid) for qid in qids[:3])}"


def _is_numbers(values: Any, count: int) -> bool:
    """Whether `values` is a list of exactly `count` finite numbers."""
    if not isinstance(values, list | tuple) or len(values) != count:
        return False
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        return False
    return bool(np.isfinite(np.array(values, np.float64)).all())


def _windows(
    rows: Sequence[Row], key: str, width: int, most: int | None, what: str, fault: Callable[[Any], str]
) -> Windows:
    lists = [row.get(key) for row in rows]
    if most is not None:
        lists = [windows[:most] if isinstance(windows, list | tuple) else windows for windows in lists]
    counts, flat = _flatten(rows, lists, key, what, width, fault)
    if len(flat) != counts.sum():  # an empty list among the windows
        raise _fault(rows, lists, key, what, fault)
    wrong = (flat[:, 1] < flat[:, 0]) | ((flat[:, 1] == flat[:, 0]) & (width == 2))
    if wrong.any() or not counts.all():
        raise _fault(rows, lists, key, what, fault)
    table = np.zeros((len(rows), counts.max(), 3))
    there = np.zeros(table.shape[:2], bool)
    queries, places = _places(counts)
    table[queries, places, :width] = flat
    there[queries, places] = True
    return Windows(table[..., 0], table[..., 1], table[..., 2], there)


def _flatten(
    rows: Sequence[Row], lists: list[Any], key: str, what: str, width: int | None, fault: Callable[[Any], str]
) -> tuple[np.ndarray, np.ndarray]:
    """Lists of rows (`width` numbers each) or of numbers (None), joined: counts [N] and float64 [sum] or [sum, width].

    The whole is converted at once; only when that fails does `fault` look for the query to blame.
    """
    try:
        counts = np.array([len(entries) for entries in lists])
        flat = np.array([entry for entries in lists for entry in entries])
        if flat.size == 0:
            flat = np.zeros((0,) if width is None else (0, width))
        fits = flat.dtype.kind in "iuf" and flat.shape[1:] == (() if width is None else (width,))
        if fits and (width is not None or counts.all()) and np.isfinite(flat).all():
            return counts, flat.astype(np.float64)
    except (TypeError, ValueError):
        pass
    raise _fault(rows, lists, key, what, fault)


def _fault(rows: Sequence[Row], lists: list[Any], key: str, what: str, fault: Callable[[Any], str]) -> InputError:
    for row, entries in zip(rows, lists):
        if message := fault(entries):
            return InputError(f"{what} qid {row['qid']!r}: {key}: {message}")
    return InputError(f"{what}: {key} cannot be read as numbers")


def _places(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of each entry of the joined lists."""
    starts = np.cumsum(counts) - counts
    return np.repeat(np.arange(len(counts)), counts), np.arange(counts.sum()) - np.repeat(starts, counts)


def _clips(row: Row, clip_s: float) -> int:
    duration_s = row.get("duration")
    if isinstance(duration_s, bool) or not isinstance(duration_s, int | float) or not 0 < duration_s < 1e7:
        raise InputError(
            f"ground truth qid {row['qid']!r}: duration must be a number of seconds above 0, got {duration_s!r}"
        )
    return math.ceil(duration_s / clip_s - 1e-6)  # the last clip may be cut short; official durations are whole clips
