"""Second level of parity: does the model still decide the same? Query by query, against the reference.

Shapes: M moments, T clips. Times are seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from sdst_runtime.contracts import Grounding

FIRST = 5  # moments whose order a person sees
FLAT = 1e-6  # lower scores are one: ONNX Runtime's sigmoid on a CPU, in older bundles, is flat below 1.5e-8


@dataclass(frozen=True)
class Answer:
    """What one model says to one query."""

    grounding: Grounding
    scores: np.ndarray  # M, in the model's own order, which is the same in every copy of it


@dataclass(frozen=True)
class Decisions:
    """Means over queries, 0..1 but for the rank agreement."""

    queries: int
    top_iou: float  # IoU of the two best moments
    worst_top_iou: float
    same_top: float  # share of queries whose best moment is the same of the M
    rank: float  # Kendall's tau of the scores, -1..1
    first_kept: float  # of the reference's first moments, the share that the other has among its first
    top_clip: float  # share of queries with the same clip of highest saliency


def decisions(reference: Sequence[Answer], other: Sequence[Answer]) -> Decisions:
    """Compare answers to the same queries, one by one; at least one."""
    pairs = list(zip(reference, other, strict=True))
    ious = np.array([_top_iou(a.grounding, b.grounding) for a, b in pairs])
    return Decisions(
        len(pairs),
        float(ious.mean()),
        float(ious.min()),
        float(np.mean([np.argmax(a.scores) == np.argmax(b.scores) for a, b in pairs])),
        float(np.mean([_rank_agreement(_told_apart(a), _told_apart(b)) for a, b in pairs])),
        float(np.mean([_first_kept(_told_apart(a), _told_apart(b)) for a, b in pairs])),
        float(np.mean([np.argmax(a.grounding.saliency) == np.argmax(b.grounding.saliency) for a, b in pairs])),
    )


def _rank_agreement(x_M: np.ndarray, y_M: np.ndarray) -> float:
    """Kendall's tau-b; where it is not defined, 1 if both hold one value only, else 0."""
    tau: Any = kendalltau(x_M, y_M)
    return float(np.ptp(x_M) == np.ptp(y_M) == 0) if math.isnan(tau.statistic) else float(tau.statistic)


def _told_apart(answer: Answer) -> np.ndarray:
    return np.maximum(answer.scores, FLAT)


def _top_iou(a: Grounding, b: Grounding) -> float:
    one, two = a.moments[0], b.moments[0]
    shared = max(0.0, min(one.end_s, two.end_s) - max(one.start_s, two.start_s))
    union = (one.end_s - one.start_s) + (two.end_s - two.start_s) - shared
    if union <= 0:  # both have no length: the same only if they are at the same place
        return float((one.start_s, one.end_s) == (two.start_s, two.end_s))
    return shared / union


def _first_kept(x_M: np.ndarray, y_M: np.ndarray) -> float:
    first = min(FIRST, len(x_M))
    shared = set(np.argsort(-x_M, kind="stable")[:first]) & set(np.argsort(-y_M, kind="stable")[:first])
    return len(shared) / first
