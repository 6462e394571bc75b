"""Moment retrieval and highlight detection, scored as the fields' official evaluators do, in numpy.

`evaluate` gives the keys and values of the QVHighlights evaluator: R1 reads the first listed window, mAP the first ten,
sorted by score; HL metrics binarise each annotator's saliency at 2 (Fair), 3 (Good) and 4 (VeryGood).
`moment_metrics` gives those of Charades-STA and TACoS. All values are percent.

Shape letters: N queries, P predicted windows, G annotated windows, H IoU thresholds, C clips, A annotators.
Rows are JSON objects as in the submission and annotation files; windows are seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from .tables import (
    Row,
    Saliency,
    Windows,
    annotated_saliency,
    annotated_windows,
    holds,
    in_range,
    pair,
    predicted_saliency,
    predicted_windows,
    take,
)

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
LENGTH_RANGES_S = {"short": (0, 10), "middle": (10, 30), "long": (30, 150)}  # (longer than, up to]
SALIENCY_LEVELS = {"Fair": 2, "Good": 3, "VeryGood": 4}
MAX_WINDOWS = 10


def evaluate(
    predictions: Sequence[Row], ground_truth: Sequence[Row], *, rounded: bool = True, clip_s: float = 2.0
) -> dict[str, Any]:
    """The official QVHighlights result: "brief", then the metrics by length range and saliency level.

    Rows of predictions hold qid, pred_relevant_windows [[start, end, score], ...] and pred_saliency_scores (one a
    clip); without either of the two in all rows its metrics are absent. `rounded`: two decimals, as the official.
    A length range that no annotated window falls into has None. A last clip that is cut short counts (61 s are 31
    clips of 2 s); the official code would drop it, on its own data all clips are whole. Raises InputError naming the
    qid that is wrong.
    """
    annotations = pair(predictions, ground_truth)
    brief: dict[str, Any] = {}
    full: dict[str, Any] = {}
    has_windows = holds(predictions, "pred_relevant_windows", "prediction")
    has_saliency = holds(predictions, "pred_saliency_scores", "prediction")
    if not has_windows and not has_saliency:
        raise InputError("predictions hold neither pred_relevant_windows nor pred_saliency_scores: nothing to score")
    if has_windows:
        full |= _by_length(predicted_windows(predictions, MAX_WINDOWS), annotated_windows(annotations))
        brief |= {
            "MR-full-R1@0.5": full["full"]["MR-R1"]["0.5"],
            "MR-full-R1@0.7": full["full"]["MR-R1"]["0.7"],
            "MR-full-mAP": full["full"]["MR-mAP"]["average"],
            "MR-full-mAP@0.5": full["full"]["MR-mAP"]["0.5"],
            "MR-full-mAP@0.75": full["full"]["MR-mAP"]["0.75"],
            "MR-long-mAP": full["long"]["MR-mAP"]["average"],
            "MR-middle-mAP": full["middle"]["MR-mAP"]["average"],
            "MR-short-mAP": full["short"]["MR-mAP"]["average"],
        }
    if has_saliency and holds(annotations, "saliency_scores", "ground truth"):
        levels = _highlights(predicted_saliency(predictions), annotated_saliency(annotations, clip_s))
        full |= levels
        for name, values in levels.items():
            brief |= {f"{name}-mAP": values["HL-mAP"], f"{name}-Hit1": values["HL-Hit1"]}
    result = {"brief": brief} | {key: full[key] for key in sorted(full)}
    return rounded_off(result) if rounded else result


def moment_metrics(
    predictions: Sequence[Row],
    ground_truth: Sequence[Row],
    *,
    thresholds: Sequence[float] = (0.3, 0.5, 0.7),
    ranks: Sequence[int] = (1,),
    rounded: bool = True,
) -> dict[str, float]:
    """Charades-STA and TACoS: {"R1@0.3": ..., "R1@0.5": ..., "R1@0.7": ..., "mIoU": ...}, percent.

    Rn: one of the first n windows, as listed, has the IoU with some annotated window; `ranks=(1, 5)` adds R5.
    mIoU: mean of the first window's IoU. Raises InputError naming the qid that is wrong.
    """
    if not ranks or min(ranks) < 1:
        raise InputError(f"ranks must be 1 or more, got {tuple(ranks)}")
    annotations = pair(predictions, ground_truth)
    predicted, annotated = predicted_windows(predictions, max(ranks)), annotated_windows(annotations)
    first_N = first_iou(predicted, annotated)
    best_NP = np.maximum.accumulate(_iou(predicted, annotated).max(axis=-1), axis=1)
    result: dict[str, float] = {}
    for rank in ranks:
        best_N = first_N if rank == 1 else np.maximum(first_N, best_NP[:, min(rank, best_NP.shape[1]) - 1])
        result |= {f"R{rank}@{threshold:g}": 100 * float(np.mean(best_N >= threshold)) for threshold in thresholds}
    result["mIoU"] = 100 * float(np.mean(first_N))
    return rounded_off(result) if rounded else result


def top_clip_in_window(predictions: Sequence[Row], ground_truth: Sequence[Row], *, clip_s: float = 2.0) -> float:
    """Percent of queries whose clip of highest saliency has its centre inside an annotated window."""
    annotations = pair(predictions, ground_truth)
    saliency, windows = predicted_saliency(predictions), annotated_windows(annotations)
    centre_s = (_top_clip(saliency) + 0.5)[:, None] * clip_s
    inside = windows.there & (windows.start_s <= centre_s) & (centre_s <= windows.end_s)
    return 100 * float(np.mean(inside.any(axis=1)))


# ---------------------------------------------------------------- moments


def _by_length(predicted: Windows, annotated: Windows) -> dict[str, Any]:
    """MR-mAP and MR-R1 of all queries, and by length: the windows of that length and the queries that have some."""
    result = {}
    for name, limits_s in LENGTH_RANGES_S.items():
        kept = in_range(annotated, *limits_s)
        rows = np.flatnonzero(kept.there.any(axis=1))
        result[name] = retrieval(take(predicted, rows), take(kept, rows))
    return result | {"full": retrieval(predicted, annotated)}


def retrieval(predicted: Windows, annotated: Windows) -> dict[str, Any]:
    """MR-mAP and MR-R1 by IoU, percent; None without queries."""
    names = [str(threshold) for threshold in IOU_THRESHOLDS]
    if len(predicted.there) == 0:
        return {"MR-mAP": dict.fromkeys([*names, "average"]), "MR-R1": dict.fromkeys(names)}
    ap_H = _average_precision(predicted, annotated).mean(axis=0)
    first_N = first_iou(predicted, annotated)
    return {
        "MR-mAP": {name: 100 * float(ap) for name, ap in zip([*names, "average"], [*ap_H, ap_H.mean()])},
        "MR-R1": {name: 100 * float(np.mean(first_N >= iou)) for name, iou in zip(names, IOU_THRESHOLDS)},
    }


def _iou(predicted: Windows, annotated: Windows) -> np.ndarray:
    """N P G; 0 where either window is not there."""
    starts, ends = predicted.start_s[:, :, None], predicted.end_s[:, :, None]
    other_starts, other_ends = annotated.start_s[:, None], annotated.end_s[:, None]
    shared = np.clip(np.minimum(ends, other_ends) - np.maximum(starts, other_starts), 0, None)
    union = (ends - starts) + (other_ends - other_starts) - shared
    there = predicted.there[:, :, None] & annotated.there[:, None]
    return np.divide(shared, union, out=np.zeros_like(shared), where=there)


def first_iou(predicted: Windows, annotated: Windows) -> np.ndarray:
    """N: the first listed window against the annotated one it overlaps most, over their hull as the official does."""
    first = take(predicted, slice(None), 1)
    iou_NG = np.where(annotated.there, _iou(first, annotated)[:, 0], -1.0)
    best = np.arange(len(iou_NG)), iou_NG.argmax(axis=1)
    start_s, end_s = annotated.start_s[best], annotated.end_s[best]
    shared = np.maximum(0, np.minimum(first.end_s[:, 0], end_s) - np.maximum(first.start_s[:, 0], start_s))
    return shared / (np.maximum(first.end_s[:, 0], end_s) - np.minimum(first.start_s[:, 0], start_s))


def _average_precision(predicted: Windows, annotated: Windows) -> np.ndarray:
    """N H. Queries with the same number of annotated windows are computed together, so that few entries are idle."""
    counts = annotated.there.sum(axis=1)
    ap_NH = np.zeros((len(counts), len(IOU_THRESHOLDS)))
    for count in np.unique(counts):
        rows = np.flatnonzero(counts == count)
        ap_NH[rows] = _average_precision_of(take(predicted, rows), take(annotated, rows, count))
    return ap_NH


def _average_precision_of(predicted: Windows, annotated: Windows) -> np.ndarray:
    """N H. By descending score each window takes the free annotated one it overlaps most, if by the threshold."""
    order = np.argsort(np.where(predicted.there, -predicted.score, np.inf), axis=1, kind="stable")
    iou_NPG = np.take_along_axis(_iou(predicted, annotated), order[:, :, None], axis=1)
    queries, ranks, _ = iou_NPG.shape
    thresholds_H = np.array(IOU_THRESHOLDS)
    free_NHG = np.ones((queries, len(thresholds_H), annotated.there.shape[1]), bool)
    hit_NHP = np.zeros((queries, len(thresholds_H), ranks), bool)
    for rank in range(ranks):
        iou_NHG = np.where(free_NHG, iou_NPG[:, rank, None], -1.0)
        best_NH = iou_NHG.shape[-1] - 1 - iou_NHG[..., ::-1].argmax(axis=-1)  # among equals the last, as the official
        best_iou_NH = np.take_along_axis(iou_NHG, best_NH[..., None], axis=-1)[..., 0]
        hit_NHP[..., rank] = best_iou_NH >= thresholds_H
        n, h = np.nonzero(hit_NHP[..., rank])
        free_NHG[n, h, best_NH[n, h]] = False
    # Windows that are not there come last and hit nothing, which changes no interpolated precision.
    found_NHP = np.cumsum(hit_NHP, axis=-1, dtype=np.float64)
    precision_NHP = _envelope(found_NHP / np.arange(1, ranks + 1))
    recall_NHP = found_NHP / annotated.there.shape[1]
    steps_NHP = np.diff(recall_NHP, axis=-1, prepend=0)
    return (steps_NHP * precision_NHP).sum(axis=-1)


def _envelope(precision: np.ndarray) -> np.ndarray:
    """Interpolated precision: the highest at this place of the last axis or later."""
    return np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]


# ---------------------------------------------------------------- highlights


def _highlights(predicted: Saliency, annotated: Saliency) -> dict[str, dict[str, float]]:
    """HL-mAP (mean over queries and annotators) and HL-Hit1 (any annotator agrees) at each level."""
    queries, longest, annotators = annotated.scores.shape
    rows = np.arange(queries)
    top_N = _top_clip(predicted)
    top_NA = annotated.scores[rows, np.minimum(top_N, longest - 1)]
    top_NA = np.where((top_N < annotated.clips)[:, None], top_NA, 0)

    # The ranking is the same for all levels and annotators: clips of the video only, those not predicted score 0.
    there_NC = np.arange(longest) < annotated.clips[:, None]
    scores_NC = np.zeros((queries, longest))
    width = min(longest, predicted.scores.shape[1])
    scores_NC[:, :width] = predicted.scores[:, :width]
    scores_NC = np.where(there_NC, scores_NC, -np.inf)
    order_NC = np.argsort(-scores_NC, axis=1, kind="stable")
    sorted_NC = np.take_along_axis(scores_NC, order_NC, axis=1)
    group_end_NC = np.ones_like(there_NC)  # equal scores are one step of the precision-recall curve
    group_end_NC[:, :-1] = sorted_NC[:, 1:] != sorted_NC[:, :-1]

    result = {}
    for name, level in SALIENCY_LEVELS.items():
        ap_NA = np.zeros((queries, annotators))
        for annotator in range(annotators):
            relevant_NC = np.take_along_axis(annotated.scores[..., annotator] >= level, order_NC, axis=1)
            ap_NA[:, annotator] = _ranking_ap(relevant_NC, group_end_NC)
        hit_N = (top_NA >= level).any(axis=1)
        result[f"HL-min-{name}"] = {"HL-mAP": 100 * float(ap_NA.mean()), "HL-Hit1": 100 * float(hit_N.mean())}
    return result


def _top_clip(saliency: Saliency) -> np.ndarray:
    """N: the first clip of highest predicted saliency."""
    there = np.arange(saliency.scores.shape[1]) < saliency.clips[:, None]
    return np.where(there, saliency.scores, -np.inf).argmax(axis=1)


def _ranking_ap(relevant_NC: np.ndarray, group_end_NC: np.ndarray) -> np.ndarray:
    """N: mean interpolated precision over the distinct recalls of a ranking; 0 for a query with nothing relevant."""
    found_NC = np.cumsum(relevant_NC, axis=1)
    precision_NC = np.where(group_end_NC, found_NC / np.arange(1, found_NC.shape[1] + 1), 0)
    found_at_ends_NC = np.where(group_end_NC, found_NC, 0)
    before_NC = np.zeros_like(found_NC)
    before_NC[:, 1:] = np.maximum.accumulate(found_at_ends_NC, axis=1)[:, :-1]
    rises_NC = group_end_NC & (found_NC > before_NC)
    total_N = (_envelope(precision_NC) * rises_NC).sum(axis=1)
    return total_N / np.maximum(rises_NC.sum(axis=1), 1)


def rounded_off(values: Any) -> Any:
    """Two decimals, formatted and read back as the official does."""
    if isinstance(values, dict):
        return {key: rounded_off(value) for key, value in values.items()}
    return values if values is None or isinstance(values, int) else float(f"{values:.2f}")
