"""What a precision does to a graph: each tensor of the reference's run beside the same tensor of the other graph's.

Both graphs get the same inputs. Tensors are matched by the node that makes them (taps.py), as casts and Q/DQ shift the
tracer's numbers. Shares are of the values of the reference: what would overflow, be subnormal or become zero if it were
rounded to half. The signal-to-noise ratio is 10 log10(sum x^2 / sum (x - other)^2), in dB; half alone gives about 74 dB
at best.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from sdst_runtime.contracts import FP16, FP32, KIND_KEY, PRECISION_KEY, SPEC_KEY, STEPS_KEY
from sdst_runtime.errors import ContractError, InputError

from ..taps import Feeds, Graph, Tap, groups, pieces, run_tapped
from ..tensor_errors import TensorSums

LARGEST = 65504.0  # of float16
SMALLEST_NORMAL = 2.0**-14
FLUSHED = 2.0**-25  # at most this much rounds to zero
EXACT_DB = 200.0  # written for no error at all


@dataclass(frozen=True)
class TensorAudit:
    """One tensor over all data. Shares are of its values, 0..1."""

    tensor: str  # its name in the reference graph
    key: str
    place: str  # path of the module, "" outside all
    operator: str
    half: bool  # float16 in the other graph
    sources: tuple[str, ...]  # keys of what its node reads
    amax: float
    rms: float
    overflow: float
    subnormal: float  # rounded to fewer bits, flushed ones left out
    flushed: float
    broken: float  # NaN or infinite in the other run, finite in the reference's
    max_error: float  # of the values that are not broken
    snr_db: float | None  # at most EXACT_DB either way; None: broken values have no ratio


@dataclass(frozen=True)
class GraphAudit:
    """One model."""

    model: str
    feeds: int
    tensors: tuple[TensorAudit, ...]  # in the order of the nodes
    unmatched: tuple[str, ...]  # tensors of the reference graph without a twin
    outputs: tuple[str, ...]  # keys of the tensors that the model gives


def audit_graphs(
    model: str,
    single: Graph,
    half: Graph,
    feeds: Feeds,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> GraphAudit:
    """`compare_graphs` of a float32 graph and its half twin. Raises ContractError when they are not."""
    for graph, precision in ((single, FP32), (half, FP16)):
        got = graph.metadata.get(PRECISION_KEY)
        if got != precision:
            raise ContractError(
                f"{graph.path}: expected a model exported in {precision}, got {got};"
                " give the fp32 bundle, then the fp16"
            )
    return compare_graphs(model, single, half, feeds, on_done)


def compare_graphs(
    model: str,
    reference: Graph,
    other: Graph,
    feeds: Feeds,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> GraphAudit:
    """Run both graphs over all of `feeds`. `on_done` hears of (passes over the data done, of all).

    Raises ContractError when the files are not one model of one checkpoint, InputError when there is no data or ONNX
    Runtime fails.
    """
    _require_one_model(reference, other)
    matched, unmatched = match_taps(reference.taps, other.taps)
    if len(matched) < len(unmatched):
        raise ContractError(
            f"{other.path}: only {len(matched)} of {len(reference.taps)} tensors of {reference.path} are in it;"
            " export both bundles from one checkpoint"
        )
    known = _known_sources(reference.taps, {tap.key for tap, _ in matched})
    audits: list[TensorAudit] = []
    count = 0
    twins = {tap.key: twin for tap, twin in matched}
    parts = list(groups([tap for tap, _ in matched]))
    for done, taps in enumerate(parts, 1):
        part = [(replace(tap, sources=known[tap.key]), twins[tap.key]) for tap in taps]
        counters = [_ErrorCounter() for _ in part]
        count = _run_pairs(reference, other, part, counters, feeds)
        audits += [counter.result(*pair) for counter, pair in zip(counters, part, strict=True)]
        on_done(done, len(parts))
    if not count:
        raise InputError("calibration data: expected at least one query, got none; give a split that has some")
    names = {value.name for value in reference.model.graph.output}
    outputs = tuple(audit.key for audit in audits if audit.tensor in names)
    return GraphAudit(model, count, tuple(audits), tuple(unmatched), outputs)


def match_taps(reference: Sequence[Tap], other: Sequence[Tap]) -> tuple[list[tuple[Tap, Tap]], list[str]]:
    """The tensors of both graphs in pairs, and the names of the reference's that have no twin.

    Where a module has more nodes of one operator in one graph than in the other, none of them is matched: from the
    added one on, each would be taken for its neighbour.
    """
    counts = [Counter((tap.place, tap.operator) for tap in taps) for taps in (reference, other)]
    twins = {tap.key: tap for tap in other if counts[0][tap.place, tap.operator] == counts[1][tap.place, tap.operator]}
    matched = [(tap, twins[tap.key]) for tap in reference if tap.key in twins]
    return matched, [tap.tensor for tap in reference if tap.key not in twins]


def _known_sources(taps: Sequence[Tap], matched: Set[str]) -> dict[str, tuple[str, ...]]:
    """What each tensor comes from: for a source without a twin, what that comes from. Inputs stay as they are."""
    known: dict[str, tuple[str, ...]] = {}
    made = {tap.key for tap in taps}
    for tap in taps:
        sources = (known[key] if key in made and key not in matched else (key,) for key in tap.sources)
        known[tap.key] = tuple(dict.fromkeys(chain.from_iterable(sources)))
    return known


def _require_one_model(reference: Graph, other: Graph) -> None:
    for field in (KIND_KEY, SPEC_KEY, STEPS_KEY):
        ours, theirs = reference.metadata.get(field), other.metadata.get(field)
        if ours != theirs:
            raise ContractError(
                f"{field} is {ours!r} in {reference.path} and {theirs!r} in {other.path};"
                " export both from one checkpoint"
            )


def _run_pairs(
    reference: Graph, other: Graph, pairs: Sequence[tuple[Tap, Tap]], counters: Sequence[_ErrorCounter], feeds: Feeds
) -> int:
    expected = run_tapped(reference, [tap.tensor for tap, _ in pairs], feeds())
    got = run_tapped(other, [tap.read_as for _, tap in pairs], feeds())
    count = 0
    for ours, theirs in zip(expected, got, strict=True):
        count += 1
        for counter, (tap, twin) in zip(counters, pairs, strict=True):
            expected_values, got_values = ours[tap.tensor], theirs[twin.read_as]
            if expected_values.shape != got_values.shape:
                raise ContractError(
                    f"{twin.node}: {twin.tensor} is {list(got_values.shape)} and {list(expected_values.shape)} in the"
                    " reference; compare exports of one checkpoint"
                )
            counter.add(expected_values, got_values)
    return count


class _ErrorCounter:
    """Adds up one tensor's values and errors, an array at a time."""

    def __init__(self) -> None:
        self._sums = TensorSums()
        self._values = self._overflow = self._subnormal = self._flushed = 0
        self._amax = self._square = 0.0

    def add(self, expected: np.ndarray, got: np.ndarray) -> None:
        for piece in pieces(expected, got):
            self._add(*piece)

    def _add(self, expected: np.ndarray, got: np.ndarray) -> None:
        finite = np.isfinite(expected)
        x = expected[finite].astype(np.float64)
        self._sums.add(x, got[finite])
        size = np.abs(x)
        self._values += x.size
        self._overflow += int((size > LARGEST).sum())
        self._subnormal += int(((size < SMALLEST_NORMAL) & (size > FLUSHED)).sum())
        self._flushed += int(((size <= FLUSHED) & (size > 0)).sum())
        self._amax = max(self._amax, float(size.max(initial=0)))
        self._square += float((size**2).sum())

    def result(self, tap: Tap, twin: Tap) -> TensorAudit:
        n, error = max(self._values, 1), self._sums.error()
        return TensorAudit(
            tensor=tap.tensor,
            key=tap.key,
            place=tap.place,
            operator=tap.operator,
            half=twin.half,
            sources=tap.sources,
            amax=self._amax,
            rms=math.sqrt(self._square / n),
            overflow=self._overflow / n,
            subnormal=self._subnormal / n,
            flushed=self._flushed / n,
            broken=error.not_finite / n,
            max_error=error.max_abs if error.values else 0.0,
            snr_db=None if error.not_finite else _within(error.snr_db),
        )


def _within(snr_db: float) -> float:
    """NaN, of a tensor without values, is no error."""
    return EXACT_DB if math.isnan(snr_db) else max(-EXACT_DB, min(snr_db, EXACT_DB))
