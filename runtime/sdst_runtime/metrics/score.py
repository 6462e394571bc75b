"""A head on a data set: predictions, metrics, and the few numbers that stand for them.

The head is any Session: torch, ONNX Runtime or an engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..data.annotations import Row
from ..data.config import DataConfig
from ..data.dataset import Sample
from .evaluator import evaluate, moment_metrics


def score(rows: Sequence[Row], samples: Sequence[Sample], data: DataConfig, *, rounded: bool = True) -> dict[str, Any]:
    """All metrics of prediction rows, in percent.

    `qvhighlights`: the official evaluator's result ("brief" and the rest); `moments`: {"brief": R1 at 0.3, 0.5, 0.7
    and mIoU}. Raises InputError naming the qid that is wrong.
    """
    truth = [sample.row for sample in samples]
    if data.metrics == "moments":
        return {"brief": moment_metrics(rows, truth, rounded=rounded)}
    return evaluate(rows, truth, clip_s=data.clip_s, rounded=rounded)


def metric_names(samples: Sequence[Sample], data: DataConfig) -> list[str]:
    """Names of the "brief" metrics that a split allows: those that a prediction of the truth itself gets.

    Raises InputError naming the qid whose annotation cannot be scored, as one with an empty window.
    """
    truth = [
        {
            "qid": sample.row["qid"],
            "pred_relevant_windows": [[start, end, 1.0] for start, end in sample.row["relevant_windows"]],
            "pred_saliency_scores": sample.saliency.tolist(),
        }
        for sample in samples
    ]
    return [name for name, value in score(truth, samples, data)["brief"].items() if value is not None]
