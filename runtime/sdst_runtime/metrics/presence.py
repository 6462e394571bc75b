"""How well a model tells what is in a video from what is not, and retrieval in which a false alarm counts.

Rows of predictions hold `pred_presence`, 0..1; of annotations `"absent": true` where the event is not in the video.
Shapes: N queries. Values in percent, but for AUROC and ECE, which are 0..1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data.annotations import Row, is_absent
from ..errors import InputError
from .tables import pair

THRESHOLD = 0.5
BINS = 10  # of equal width, as most works on calibration have them


def presence_metrics(
    predictions: Sequence[Row], ground_truth: Sequence[Row], first_iou: Sequence[float], threshold: float = THRESHOLD
) -> dict[str, Any]:
    """AUROC and ECE of the presence; precision and recall of answering at `threshold`, and R1 with absent queries.

    `first_iou`: of each present query's first window, in the order of `predictions`. A present query is a hit of R1
    when it is answered, its presence at least `threshold`, with the IoU; an absent one when it is not answered. Raises
    InputError naming the qid without a presence, and without a query of each kind.
    """
    there_N = np.array([not is_absent(row) for row in pair(predictions, ground_truth)])
    presence_N = presences(predictions)
    if there_N.all() or not there_N.any():
        raise InputError("presence: expected present and absent queries, got one kind only")
    iou_N = np.zeros(len(there_N))
    iou_N[there_N] = first_iou
    answered_N = presence_N >= threshold
    hits = {f"R1@{iou:g} with absent": recall_with_absent(answered_N, there_N, iou_N >= iou) for iou in (0.5, 0.7)}
    return {
        "queries": len(there_N),
        "absent": int((~there_N).sum()),
        "AUROC": auroc(presence_N, there_N),
        "ECE": expected_calibration_error(presence_N, there_N),
        "threshold": threshold,
        **answering(presence_N, there_N, threshold),
        **hits,
    }


def presences(predictions: Sequence[Row]) -> np.ndarray:
    """N. Raises InputError naming the qid without one that is 0 to 1."""
    values = [row.get("pred_presence") for row in predictions]
    for row, value in zip(predictions, values):
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise InputError(
                f"prediction qid {row['qid']!r}: expected pred_presence of 0 to 1, got {value!r:.40}; absent queries "
                "need a model that was trained with --data.negatives"
            )
    return np.array(values, np.float64)


def answering(presence_N: np.ndarray, there_N: np.ndarray, threshold: float) -> dict[str, float]:
    """Percent of the answered queries that are present (precision), of the present ones that are answered (recall), and
    of the absent ones that are refused. Precision is 100 where none is answered.
    """
    answered_N = presence_N >= threshold
    right = float((answered_N & there_N).sum())
    return {
        "precision": 100 * right / answered_N.sum() if answered_N.any() else 100.0,
        "recall": 100 * right / there_N.sum() if there_N.any() else 100.0,
        "refused": 100 * float((~answered_N & ~there_N).sum() / max((~there_N).sum(), 1)),
    }


def recall_with_absent(answered_N: np.ndarray, there_N: np.ndarray, right_N: np.ndarray) -> float:
    """Percent of the queries that are answered rightly where they are present, and not answered where absent."""
    return 100 * float(np.mean(np.where(there_N, answered_N & right_N, ~answered_N)))


def auroc(score_N: np.ndarray, true_N: np.ndarray) -> float:
    """Probability that a true one has a higher score than a false one; a tie counts half (Mann and Whitney's U)."""
    _, inverse, counts = np.unique(score_N, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    rank_N = (last - (counts - 1) / 2)[inverse]  # mean rank of equal scores, from 1
    positives, negatives = int(true_N.sum()), int((~true_N).sum())
    above = rank_N[true_N].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def expected_calibration_error(probability_N: np.ndarray, true_N: np.ndarray, bins: int = BINS) -> float:
    """Mean gap between what was said and what was true, over bins of equal width, weighted by what is in them."""
    return float(sum(share * abs(said - true) for share, said, true in reliability(probability_N, true_N, bins)))


def reliability(probability_N: np.ndarray, true_N: np.ndarray, bins: int = BINS) -> list[tuple[float, float, float]]:
    """Of each bin that is not empty: its share of all, the mean probability in it, and the share that was true."""
    place_N = np.minimum((probability_N * bins).astype(int), bins - 1)
    return [
        (float(inside.mean()), float(probability_N[inside].mean()), float(true_N[inside].mean()))
        for inside in (place_N == place for place in range(bins))
        if inside.any()
    ]
