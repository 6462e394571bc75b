"""Symmetric int8: a scale for what a tensor holds, and the codes of weights.

code = clamp(round(x / scale), -127, 127), x' = code * scale; -128 is not used, so that the range is symmetric. An
activation has one scale, chosen from a histogram of |x|; a weight has one for each output channel. Letters: N bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from sdst_runtime.errors import InputError, require_package

Method = Literal["amax", "percentile", "mse", "entropy"]
CODES = 127  # the largest code
BINS = 2048


@dataclass(frozen=True)
class Histogram:
    """How often |x| fell into each bin."""

    counts: np.ndarray  # N
    edges: np.ndarray  # N + 1, from 0 to at least `amax`, of equal distances
    amax: float  # the largest |x|, exactly
    zeros: int  # how many of the first bin are exactly 0


class GrowingHistogram:
    """A histogram of |x| over a stream of arrays: its range doubles when a larger value comes, its bins stay as many.

    So at least half of the bins lie below the largest value.
    """

    def __init__(self, bins: int = BINS) -> None:
        self.amax = 0.0
        self._limit, self._zeros = 0.0, 0
        self._counts = np.zeros(bins, np.int64)

    def add(self, values: np.ndarray) -> None:
        """Count `values`. Raises InputError for NaN or infinity among them."""
        if not values.size:
            return
        magnitudes = np.abs(values, dtype=np.float64).ravel()
        largest = float(magnitudes.max())
        if not np.isfinite(largest):
            raise InputError("expected finite values, got NaN or infinity; look for them with  sdst calibrate ranges")
        self.amax = max(self.amax, largest)
        self._zeros += int((magnitudes == 0).sum())
        self._grow(largest)
        if self._limit == 0:
            self._counts[0] += magnitudes.size
        else:
            bins = len(self._counts)
            places = np.minimum((magnitudes * (bins / self._limit)).astype(np.int64), bins - 1)
            self._counts += np.bincount(places, minlength=bins)

    def histogram(self) -> Histogram:
        """What was counted so far."""
        edges = np.linspace(0, self._limit, len(self._counts) + 1)
        return Histogram(self._counts.copy(), edges, self.amax, self._zeros)

    def _grow(self, largest: float) -> None:
        if self._limit == 0:
            self._limit = largest
        while self._limit < largest:
            pairs = self._counts.reshape(-1, 2).sum(1)
            self._counts = np.concatenate([pairs, np.zeros_like(pairs)])
            self._limit *= 2


def activation_scale(histogram: Histogram, method: Method) -> float:
    """The scale of one tensor.

    amax: the largest value gets the largest code. percentile: the largest 0.01 % of the values that are not 0 are
    clamped; a ReLU may leave few of them. mse: the least mean square error. entropy: the clamped distribution that
    tells least apart from the whole one, by Kullback-Leibler divergence (S. Migacz, 8-bit inference with TensorRT,
    GTC 2017).
    Raises InputError when nothing was counted or all was 0, and for an unknown method.
    """
    if method not in get_args(Method):
        raise InputError(f"method: expected one of {', '.join(get_args(Method))}, got {method!r}")
    if not histogram.counts.any():
        raise InputError("expected values to choose a scale from, got none; give calibration data")
    if histogram.amax == 0:
        raise InputError("all values are 0, no scale fits; give real data, or leave the layer out with --exclude")
    choose = {"amax": lambda h: h.amax, "percentile": _percentile, "mse": _least_error, "entropy": _least_divergence}
    return choose[method](histogram) / CODES


def weight_scales(weight: np.ndarray, axis: int) -> np.ndarray:
    """One scale for each index of `axis`, its largest weight / 127, in the weight's type; 1 where all weights are 0.

    Scales in float16 end at its least number above 0. Raises InputError for a weight that is not finite.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    largest = np.abs(weight, dtype=np.float64).max(axis=others)
    if not np.isfinite(largest).all():
        raise InputError("a weight is NaN or infinite; export the checkpoint again")
    return scale_in(np.where(largest == 0, 1.0, largest / CODES), weight.dtype)


def scale_in(scale: float | np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """`scale` in the type of the tensor, as a strongly typed network wants it, never rounded to 0."""
    return np.asarray(np.maximum(np.asarray(scale).astype(dtype), np.finfo(dtype).smallest_subnormal))


def quantise(values: np.ndarray, scales: np.ndarray, axis: int | None = None) -> np.ndarray:
    """int8 codes; `scales` along `axis`, or one for all. Rounds half to even, as QuantizeLinear does."""
    divided = values.astype(np.float64) / _along(scales, axis, values.ndim).astype(np.float64)
    return np.clip(np.rint(divided), -CODES, CODES).astype(np.int8)


_KEPT = 0.9999  # the share that `percentile` does not clamp
_FRACTIONS = np.geomspace(1 / 64, 1, 128)  # of amax, the ranges that `mse` tries
_POINTS = 4  # places within a bin at which `mse` takes the error
_STEP = 16  # bins between the ranges that `entropy` tries


def _along(scales: np.ndarray, axis: int | None, dimensions: int) -> np.ndarray:
    if axis is None:
        return scales
    shape = [1] * dimensions
    shape[axis] = -1
    return scales.reshape(shape)


def _percentile(histogram: Histogram) -> float:
    counts = histogram.counts.copy()
    counts[0] -= histogram.zeros
    total = np.concatenate([[0], np.cumsum(counts)])
    place = int(np.searchsorted(total, _KEPT * total[-1]))
    below, inside = total[place - 1], counts[place - 1]
    share = (_KEPT * total[-1] - below) / inside
    return float(histogram.edges[place - 1] + share * (histogram.edges[place] - histogram.edges[place - 1]))


def _least_error(histogram: Histogram) -> float:
    filled = np.flatnonzero(histogram.counts)
    width = histogram.edges[1]
    within = (np.arange(_POINTS) + 0.5) / _POINTS * width
    points = (histogram.edges[filled, None] + within).ravel()
    weights = np.repeat(histogram.counts[filled] / _POINTS, _POINTS)
    ranges = histogram.amax * _FRACTIONS
    errors = [float(weights @ (points - _rounded(points, limit / CODES)) ** 2) for limit in ranges]
    return float(ranges[int(np.argmin(errors))])


def _rounded(points: np.ndarray, scale: float) -> np.ndarray:
    return np.minimum(np.rint(points / scale), CODES) * scale


def _least_divergence(histogram: Histogram) -> float:
    counts = histogram.counts[: int(np.flatnonzero(histogram.counts)[-1]) + 1].astype(np.float64)
    counts[0] = counts[min(1, len(counts) - 1)]  # exact zeros, as ReLU makes them, have a code of their own
    levels = CODES + 1
    stops = [*range(levels, len(counts), _STEP), len(counts)]
    divergences = [_divergence(counts, stop, levels) for stop in stops]
    return float(histogram.edges[stops[int(np.argmin(divergences))]])


def _divergence(counts: np.ndarray, stop: int, levels: int) -> float:
    """Between the first `stop` bins, what lies beyond added to the last, and the same held in `levels` levels."""
    stats: Any = require_package("scipy.stats", "train")
    whole = counts[:stop].copy()
    groups = np.arange(stop) * levels // stop
    filled = whole > 0
    held = np.bincount(groups, whole, levels) / np.maximum(np.bincount(groups, filled, levels), 1)
    kept = np.where(filled, held[groups], 0)
    whole[-1] += counts[stop:].sum()
    if not kept.any() or (whole[-1] > 0 and kept[-1] == 0):
        return float("inf")
    return float(stats.entropy(whole, kept))
