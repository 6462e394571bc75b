"""The way back from int8 codes, for tests: what DequantizeLinear computes."""

from __future__ import annotations

import numpy as np


def dequantise(codes: np.ndarray, scales: np.ndarray, axis: int | None = None) -> np.ndarray:
    """What codes stand for, in the type of `scales`, which lie along `axis`, or are one for all."""
    if axis is None:
        return codes.astype(scales.dtype) * scales
    shape = [1] * codes.ndim
    shape[axis] = -1
    return codes.astype(scales.dtype) * scales.reshape(shape)
