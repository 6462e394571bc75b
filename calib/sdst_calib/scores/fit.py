"""Lines on logits that turn scores into probabilities, by maximum likelihood (Platt 1999), and isotonic beside them.

A line is what is used: it is strictly increasing, so no two moments of a query become equal and no metric that reads
their order changes; two or three numbers cannot overfit a few hundred queries. Isotonic regression, a staircase, is
fitted for comparison only. Shapes: N queries or moments, F features.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit

from sdst_runtime.errors import InputError
from sdst_runtime.grounding.scores import LEAST, MomentLine, PresenceLine

STEEPEST = 100.0  # slopes that say more than any data can
FLATTEST = 1e-3


def fit_presence(presence_N: np.ndarray, there_N: np.ndarray) -> PresenceLine:
    """P(there | presence). Raises InputError unless there are queries of both kinds."""
    slope, offset = _fit(logits(presence_N)[:, None], there_N, "queries that are present and absent")
    return PresenceLine(slope, offset)


def fit_moments(score_N: np.ndarray, presence_N: np.ndarray, right_N: np.ndarray) -> MomentLine:
    """P(right | score, presence of its query). Raises InputError unless there are moments of both kinds."""
    features = np.stack((logits(score_N), logits(presence_N)), axis=-1)
    slope, presence_slope, offset = _fit(features, right_N, "moments that are right and wrong")
    return MomentLine(slope, presence_slope, offset)


def staircase(score_N: np.ndarray, true_N: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Isotonic regression of what is true on the score, with straight lines between its steps."""
    order = np.argsort(score_N, kind="stable")
    heights = isotonic_regression(true_N[order].astype(float)).x
    knots, first = np.unique(score_N[order], return_index=True)
    return lambda x: np.interp(x, knots, heights[first])


def logits(p: np.ndarray) -> np.ndarray:
    """Of probabilities, which are kept `LEAST` away from 0 and 1."""
    p = np.clip(p.astype(np.float64), LEAST, 1 - LEAST)
    return np.log(p) - np.log1p(-p)


def _fit(features_NF: np.ndarray, true_N: np.ndarray, what: str) -> tuple[float, ...]:
    """Slopes and offset. Targets are Platt's, which keep the slope finite where the two kinds do not overlap."""
    positives, negatives = int(true_N.sum()), int((~true_N).sum())
    if not positives or not negatives:
        raise InputError(f"calibration of scores: expected {what}, got {positives} and {negatives}")
    target_N = np.where(true_N, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    design = np.column_stack((features_NF, np.ones(len(true_N))))

    def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
        x = design @ line
        value = np.logaddexp(0, x) - target_N * x
        return float(value.mean()), design.T @ (expit(x) - target_N) / len(x)

    slopes = features_NF.shape[1]
    bounds = [(FLATTEST, STEEPEST), *[(-STEEPEST, STEEPEST)] * (slopes - 1), (None, None)]
    start = np.array([1.0, *[0.0] * slopes])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-12, "gtol": 1e-8})
    return tuple(map(float, found.x))
