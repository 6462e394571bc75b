"""Finds the first tensor in which two copies of a model differ: every float tensor is compared, in topological order.

Tensors are matched by the node that makes them (taps.py), so casts and Q/DQ that a precision adds do not count. Both
heads get what the reference's projection makes, so that a fault is seen in the graph that has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sdst_runtime.sessions.base import GROUNDING_MODELS
from sdst_runtime.sessions.open import open_session

from ..audit.compare import compare_graphs
from ..taps import Feeds, Inputs, open_graph, require_onnx


@dataclass(frozen=True)
class LayerError:
    """One tensor, and the node that makes it, as the graph under test names them."""

    graph: str  # projection or head
    number: int  # place in the topological order of what was compared, from 0
    node: str  # dense.cross.query/MatMul_94
    operator: str
    tensor: str
    max_error: float  # of the values that are finite
    snr_db: float | None  # None: values that are NaN or infinite here only have no ratio


@dataclass(frozen=True)
class LayerReport:
    """All compared tensors in order, and the first that is beyond the tolerance."""

    least_snr_db: float  # that is within the tolerance
    first: LayerError | None
    layers: list[LayerError]
    unmatched: list[str]  # "graph: tensor" of the reference that was not compared, as the other has none like it

    def beyond(self, layer: LayerError) -> bool:
        """Whether a tensor is beyond the tolerance."""
        return layer.snr_db is None or not layer.snr_db >= self.least_snr_db


Graphs = Mapping[str, Path]  # of GROUNDING_MODELS to ONNX files


def compare_layers(
    reference: Graphs,
    other: Graphs,
    queries: Sequence[Inputs],
    least_snr_db: float,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> LayerReport:
    """Run both heads tensor by tensor on `queries`, each video, video_mask, text and text_mask of the head.

    `on_done` hears of (graphs done, of all). Raises InputError for a file that is no ONNX graph and without queries,
    ContractError when the graphs are not of one checkpoint.
    """
    require_onnx(*reference.values(), *other.values())
    feeds = _feeds(reference["projection"], queries)
    layers: list[LayerError] = []
    unmatched: list[str] = []
    for done, name in enumerate(GROUNDING_MODELS, 1):
        ours, theirs = open_graph(reference[name]), open_graph(other[name])
        twins = {tap.key: tap for tap in theirs.taps}
        compared = compare_graphs(name, ours, theirs, feeds[name])
        unmatched += [f"{name}: {tensor}" for tensor in compared.unmatched]
        for tensor in compared.tensors:
            twin = twins[tensor.key]
            layers.append(
                LayerError(name, len(layers), twin.node, twin.operator, twin.tensor, tensor.max_error, tensor.snr_db)
            )
        on_done(done, len(GROUNDING_MODELS))
    report = LayerReport(least_snr_db, None, layers, unmatched)
    return replace(report, first=next(filter(report.beyond, layers), None))


def _feeds(projection: Path, queries: Sequence[Inputs]) -> dict[str, Feeds]:
    with open_session(projection, as_written=True) as session:
        projected = [session.run({name: query[name] for name in session.inputs}) for query in queries]
    heads = [{**query, **outputs} for query, outputs in zip(queries, projected, strict=True)]
    return {"projection": lambda: queries, "head": lambda: heads}
