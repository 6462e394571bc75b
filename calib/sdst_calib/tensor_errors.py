"""First level of parity: how far apart the numbers of one tensor are, summed up over batches.

Signal to noise is 10 log10(sum reference^2 / sum (reference - other)^2), in dB.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TensorError:
    """One tensor against the reference's, over all values that are finite in both."""

    values: int
    max_abs: float
    mean_abs: float
    cosine: float
    snr_db: float
    not_finite: int  # values that only one of the two has as a finite number, or that are different infinities


class TensorSums:
    """Adds up the errors of one tensor, batch by batch, in bounded memory."""

    def __init__(self) -> None:
        self._values = self._not_finite = 0
        self._dot = self._reference = self._other = self._noise = 0.0
        self._abs = self._max_abs = 0.0

    def add(self, reference: np.ndarray, other: np.ndarray) -> None:
        """One batch of both, of equal shape."""
        x, y = reference.astype(np.float64).ravel(), other.astype(np.float64).ravel()
        finite = np.isfinite(x) & np.isfinite(y)
        self._not_finite += int((~finite & (x != y)).sum())
        x, y = x[finite], y[finite]
        if not len(x):
            return
        apart = np.abs(x - y)
        self._values += len(x)
        self._dot, self._reference = self._dot + float(x @ y), self._reference + float(x @ x)
        self._other, self._noise = self._other + float(y @ y), self._noise + float(apart @ apart)
        self._abs, self._max_abs = self._abs + float(apart.sum()), max(self._max_abs, float(apart.max()))

    def error(self) -> TensorError:
        """All batches so far; NaN where there was nothing to compare."""
        if not self._values:
            return TensorError(0, math.nan, math.nan, math.nan, math.nan, self._not_finite)
        return TensorError(
            self._values,
            self._max_abs,
            self._abs / self._values,
            self._cosine(),
            snr_db(self._reference, self._noise),
            self._not_finite,
        )

    def _cosine(self) -> float:
        norms = math.sqrt(self._reference) * math.sqrt(self._other)
        return min(self._dot / norms, 1.0) if norms else float(self._reference == self._other)


def snr_db(signal: float, noise: float) -> float:
    """Both as sums of squares; infinite without noise."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
