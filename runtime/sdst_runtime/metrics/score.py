"""A head on a data set: predictions, metrics, and the few numbers that stand for them.

The head is any Session: torch, ONNX Runtime or an engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data.annotations import Row, is_absent
from ..data.config import DataConfig
from ..data.dataset import Sample
from ..errors import InputError
from .evaluator import MAX_WINDOWS, evaluate, first_iou, moment_metrics, retrieval, rounded_off
from .presence import presence_metrics
from .tables import annotated_windows, pair, predicted_windows, take

PRESENCE_AUROC = "presence-AUROC"  # among the brief, percent
COUNTS = {"1": (1, 1), "2": (2, 2), "3 or more": (3, None)}  # annotated windows of a query: least and most


def score(rows: Sequence[Row], samples: Sequence[Sample], data: DataConfig, *, rounded: bool = True) -> dict[str, Any]:
    """All metrics of prediction rows, in percent. Those of the field are of the queries that are present.

    `qvhighlights`: the official evaluator's result ("brief" and the rest); `moments`: {"brief": R1 at 0.3, 0.5, 0.7
    and mIoU}. Besides "by_windows", where queries differ in their number of windows, and "presence", where some are
    absent and the predictions tell (`presence_metrics`, of which AUROC is among the brief). Raises InputError naming
    the qid that is wrong.
    """
    truth = [sample.row for sample in samples]
    found, asked = present(rows, truth)
    if data.metrics == "moments":
        result: dict[str, Any] = {"brief": moment_metrics(found, asked, rounded=rounded)}
    else:
        result = evaluate(found, asked, clip_s=data.clip_s, rounded=rounded)
    if groups := by_windows(found, asked):
        result["by_windows"] = rounded_off(groups) if rounded else groups
    if len(asked) < len(truth) and says_presence(rows):
        result["presence"] = absent_too(rows, truth)
        result["brief"][PRESENCE_AUROC] = 100 * result["presence"]["AUROC"]
    return result


def present(rows: Sequence[Row], truth: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Predictions and annotations of the queries that are in their videos.

    Raises InputError where some are not: as `pair` does, and when none is.
    """
    if not any(map(is_absent, truth)):
        return list(rows), list(truth)
    pair(rows, truth)
    absent = {row["qid"] for row in truth if is_absent(row)}
    if len(absent) == len(truth):
        raise InputError(f"annotations: all {len(truth)} queries are absent, no moment to score; give present ones too")
    return [row for row in rows if row["qid"] not in absent], [row for row in truth if row["qid"] not in absent]


def says_presence(rows: Sequence[Row]) -> bool:
    """Whether the predictions say if the event is there, as those of a model trained with absent queries."""
    return any("pred_presence" in row for row in rows)


def absent_too(rows: Sequence[Row], truth: Sequence[Row]) -> dict[str, Any]:
    """`presence_metrics` of predictions, some of them of absent queries."""
    found, asked = present(rows, truth)
    annotated = annotated_windows(pair(found, asked))
    return presence_metrics(rows, truth, first_iou(predicted_windows(found, 1), annotated).tolist())


def with_so_many(windows_N: np.ndarray) -> dict[str, np.ndarray]:
    """The queries of each of COUNTS, N bool, from their numbers of windows; numbers that no query has are left out."""
    chosen = {n: (windows_N >= least) & (windows_N <= (most or windows_N.max())) for n, (least, most) in COUNTS.items()}
    return {name: queries for name, queries in chosen.items() if queries.any()}


def by_windows(rows: Sequence[Row], truth: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """mAP, R1@0.5 and R1@0.7 of the queries with so many annotated windows; empty when all have as many."""
    annotated = annotated_windows(pair(rows, truth))
    counts = annotated.there.sum(axis=1)
    if len(set(counts.tolist())) < 2:
        return {}
    predicted, groups = predicted_windows(rows, MAX_WINDOWS), {}
    for name, chosen in with_so_many(counts).items():
        values = retrieval(take(predicted, chosen), take(annotated, chosen))
        groups[name] = {
            "queries": int(chosen.sum()),
            "mAP": values["MR-mAP"]["average"],
            "R1@0.5": values["MR-R1"]["0.5"],
            "R1@0.7": values["MR-R1"]["0.7"],
        }
    return groups


def metric_names(samples: Sequence[Sample], data: DataConfig) -> list[str]:
    """Names of the "brief" metrics that a split allows: those that a prediction of the truth itself gets.

    Raises InputError naming the qid whose annotation cannot be scored, as one with an empty window.
    """
    truth = [
        {
            "qid": sample.row["qid"],
            "pred_relevant_windows": [[start, end, 1.0] for start, end in sample.row.get("relevant_windows", ())],
            "pred_saliency_scores": sample.saliency.tolist(),
            "pred_presence": float(not is_absent(sample.row)),
        }
        for sample in samples
    ]
    return [name for name, value in score(truth, samples, data)["brief"].items() if value is not None]
