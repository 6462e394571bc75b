"""What the tensors of a graph hold over real data: a histogram of |x|, extremes, mean square, NaN and Inf counts.

The bins of the histogram are those of float32 itself: sixteen equal ones in every doubling, over its whole range. So
it never has to grow or to be rebinned, whatever comes, and adding two of them is exact. A file keeps the occupied ones.

The result is kept in a JSON file, together with the digests of the model and of the data: the same again is read and
not computed. One file a model, so an interrupted run starts again at the model that it was at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdst_runtime.errors import ContractError, InputError
from sdst_runtime.files import write_bytes
from sdst_runtime.strict_json import read_strict

from ..taps import Feeds, Graph, groups, pieces, run_tapped

FORMAT = 1
BINS = 256 * 16  # exponents of float32 times bins in a doubling
_SHIFT = 19  # bits of the mantissa that a bin leaves out


@dataclass(frozen=True)
class TensorRange:
    """One tensor over all data; min, max, amax and mean square are of its finite values."""

    place: str  # path of the module that makes it, "input" for an input
    operator: str
    values: int
    nan: int
    inf: int
    min: float
    max: float
    mean_square: float
    first_bin: int  # of the histogram
    counts: tuple[int, ...]  # of |x| in bins from `first_bin`; finite values only

    @property
    def amax(self) -> float:
        """The largest |x|."""
        return max(-self.min, self.max)

    def edges(self) -> np.ndarray:
        """Edges of the bins, one more than `counts`, float64."""
        return bin_edges()[self.first_bin : self.first_bin + len(self.counts) + 1]


@dataclass(frozen=True)
class GraphRanges:
    """The file of `sdst calibrate ranges` for one model."""

    format: int
    model: str  # vision, text, projection or head
    model_sha256: str
    data_sha256: str
    feeds: int  # inputs that were run
    tensors: dict[str, TensorRange]  # by name, inputs first, then in the order of the nodes


def calibrate(
    graph: Graph,
    feeds: Feeds,
    identity: tuple[str, str, str],
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> GraphRanges:
    """Run the graph over all of `feeds` and take the range of each tensor.

    `identity`: model, and the digests of the model and of the data. `on_done` hears of (passes over the data done, of
    all). Raises InputError when there is no data, when an input holds NaN or infinity, and when it is the same number
    everywhere, from which no range can be told.
    """
    count, inputs = _input_ranges(feeds)
    tensors = dict(inputs)
    parts = list(groups(graph.taps))
    for done, taps in enumerate(parts, 1):
        names = [tap.tensor for tap in taps]
        counters = {name: RangeCounter() for name in names}
        for values in run_tapped(graph, names, feeds()):
            for name, array in values.items():
                counters[name].add(array)
        tensors |= {tap.tensor: counters[tap.tensor].result(tap.place, tap.operator) for tap in taps}
        on_done(done, len(parts))
    return GraphRanges(FORMAT, *identity, count, tensors)


def write_ranges(path: Path, ranges: GraphRanges) -> None:
    """Write the JSON file. Raises InputError when it cannot be written."""
    from pydantic import TypeAdapter

    write_bytes(path, TypeAdapter(GraphRanges).dump_json(ranges))


def read_ranges(path: Path) -> GraphRanges:
    """Read a file of `write_ranges`, strictly. Raises InputError when it is missing, ContractError when it does not
    parse or has another format."""
    ranges = read_strict(GraphRanges, path, "delete it and calibrate again, with  sdst calibrate ranges")
    if ranges.format != FORMAT:
        raise ContractError(f"{path}: format {ranges.format}, this sdst reads {FORMAT}; delete it and calibrate again")
    return ranges


def bin_edges() -> np.ndarray:
    """All edges of the histogram's bins, BINS + 1, float64: powers of two and fifteen between; the first is 0."""
    edges = (np.arange(BINS - 15, dtype=np.uint32) << _SHIFT).view(np.float32).astype(np.float64)
    return np.concatenate((edges[:-1], np.full(BINS + 2 - len(edges), 2.0**128)))


class RangeCounter:
    """Adds up a tensor's values, an array at a time."""

    def __init__(self) -> None:
        self._bins = np.zeros(BINS, np.int64)
        self._values = self._nan = self._inf = 0
        self._min, self._max, self._square = np.inf, -np.inf, 0.0

    def add(self, array: np.ndarray) -> None:
        """Count all values of an array of floats."""
        for (piece,) in pieces(array):
            self._add(np.ascontiguousarray(piece, np.float32))

    def _add(self, x: np.ndarray) -> None:
        self._values += x.size
        bits = x.view(np.uint32) & np.uint32(0x7FFFFFFF)
        counted = np.bincount(bits >> _SHIFT, minlength=BINS)
        if counted[BINS - 16 :].any():
            finite = np.isfinite(x)
            self._inf += int(np.isinf(x).sum())
            self._nan += int(np.isnan(x).sum())
            x = x[finite]
            counted[BINS - 16 :] = 0
        self._bins += counted
        if x.size:
            self._min, self._max = min(self._min, float(x.min())), max(self._max, float(x.max()))
            self._square += float(np.square(x, dtype=np.float64).sum())

    def result(self, place: str, operator: str) -> TensorRange:
        """What was counted; extremes of a tensor without finite values are 0."""
        finite = self._values - self._nan - self._inf
        low, high = (self._min, self._max) if finite else (0.0, 0.0)
        occupied = np.flatnonzero(self._bins)
        first, last = (int(occupied[0]), int(occupied[-1])) if len(occupied) else (0, -1)
        counts = tuple(self._bins[first : last + 1].tolist())
        square = self._square / finite if finite else 0.0
        return TensorRange(place, operator, self._values, self._nan, self._inf, low, high, square, first, counts)


def _input_ranges(feeds: Feeds) -> tuple[int, Mapping[str, TensorRange]]:
    """How many feeds there are, and the range of each input of floats or pixels. Raises InputError as `calibrate`."""
    counters: dict[str, RangeCounter] = {}
    count = 0
    for inputs in feeds():
        count += 1
        for name, array in inputs.items():
            if array.dtype.kind == "f" or array.dtype == np.uint8:
                counters.setdefault(name, RangeCounter()).add(array)
    if not count:
        raise InputError("calibration data: expected at least one query, got none; give a split that has some")
    ranges = {name: counter.result("input", "input") for name, counter in counters.items()}
    for name, tensor in ranges.items():
        if tensor.nan or tensor.inf:
            raise InputError(
                f"calibration data: input {name!r} holds {tensor.nan} NaN and {tensor.inf} infinite values of"
                f" {tensor.values}; extract the features again"
            )
        if tensor.min == tensor.max:
            raise InputError(
                f"calibration data: input {name!r} is {tensor.min:g} everywhere, from which no range can be told;"
                " extract the features again"
            )
    return count, ranges
