"""Third level of parity: does the task metric care? Values with confidence intervals, and paired differences.

Intervals are percentile bootstraps over queries (Efron 1979): queries are drawn anew with replacement, for both models
the same ones, so that the interval of a difference does not hold what all models find hard. All values are percent.
Letters: N queries, J metrics, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sdst_runtime.data.annotations import Row, is_absent
from sdst_runtime.data.config import DataConfig
from sdst_runtime.data.dataset import Sample
from sdst_runtime.metrics.score import score

RESAMPLES = 2000
COVERED = 95  # percent
CHECKED = {  # by the data set's kind of metrics: those that stand for the task, for tolerances and for int8
    "qvhighlights": ("MR-full-R1@0.7", "MR-full-mAP"),
    "moments": ("R1@0.7", "mIoU"),
}
_SHOWN = {
    "qvhighlights": (
        *("MR-full-R1@0.5", "MR-full-R1@0.7", "MR-full-mAP"),
        *("HL-min-VeryGood-mAP", "HL-min-VeryGood-Hit1"),
    ),
    "moments": ("R1@0.3", "R1@0.5", "R1@0.7", "mIoU"),
}


@dataclass(frozen=True)
class Interval:
    """A value and what 95 % of the resamples lie between."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Metric:
    """One metric of one model, and its distance from the reference's, in points."""

    name: str
    value: Interval
    difference: Interval  # this one's minus the reference's


def metrics_by_query(rows: Sequence[Row], samples: Sequence[Sample], data: DataConfig) -> dict[str, np.ndarray]:
    """Metric -> N values of the present queries, whose mean is that of the split. Rows and samples go together.

    Raises InputError naming the qid that cannot be scored.
    """
    asked = [(row, sample) for row, sample in zip(rows, samples, strict=True) if not is_absent(sample.row)]
    briefs = [score([row], [sample], data, rounded=False)["brief"] for row, sample in asked]
    names = [name for name in _SHOWN[data.metrics] if all(brief.get(name) is not None for brief in briefs)]
    return {name: np.array([brief[name] for brief in briefs]) for name in names}


def metrics(reference: dict[str, np.ndarray], other: dict[str, np.ndarray], seed: int = 0) -> list[Metric]:
    """Every metric of `other` with its paired difference; the same seed draws the same queries for every model."""
    names = list(reference)
    values_NJ = np.stack([other[name] for name in names], axis=1)
    apart_NJ = values_NJ - np.stack([reference[name] for name in names], axis=1)
    resampled_RJ = _resample(np.concatenate([values_NJ, apart_NJ], axis=1), seed)
    means = np.concatenate([values_NJ.mean(axis=0), apart_NJ.mean(axis=0)])
    low, high = np.percentile(resampled_RJ, [(100 - COVERED) / 2, (100 + COVERED) / 2], axis=0)
    intervals = [Interval(*map(float, values)) for values in zip(means, low, high)]
    return [Metric(name, intervals[j], intervals[j + len(names)]) for j, name in enumerate(names)]


def _resample(values_NJ: np.ndarray, seed: int) -> np.ndarray:
    """R J: means of N rows drawn with replacement. One resample at a time, so that memory does not grow with R."""
    rng = np.random.default_rng(seed)
    count = len(values_NJ)
    return np.stack([values_NJ[rng.integers(count, size=count)].mean(axis=0) for _ in range(RESAMPLES)])
