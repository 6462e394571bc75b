"""Every Cast of an exported graph, grouped by its types and by why it is there.

A cast that no rule explains is listed as `UNEXPLAINED`: a test refuses it, so a change that lets a type slip is seen.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from onnxscript import ir

UNEXPLAINED = "unexplained"


@dataclass(frozen=True)
class CastGroup:
    """Casts of one kind."""

    source: str  # types in lower case: float, float16, bool
    target: str
    reason: str
    count: int
    places: list[str]  # modules, each once


def cast_groups(nodes: Iterable[ir.Node]) -> list[CastGroup]:
    """All Cast nodes of a graph's top level, the largest group first."""
    counts: Counter[tuple[str, str, str]] = Counter()
    places: dict[tuple[str, str, str], set[str]] = {}
    for node in nodes:
        if node.op_type != "Cast" or node.inputs[0] is None:
            continue
        cast = _Cast.of(node, node.inputs[0])
        key = (cast.source, cast.target, _reason(cast))
        counts[key] += 1
        places.setdefault(key, set()).add(cast.place or "top level")
    return [CastGroup(*key, count, sorted(places[key])) for key, count in counts.most_common()]


@dataclass(frozen=True)
class _Cast:
    source: str
    target: str
    place: str
    producer: str  # operator, or "input"
    consumers: frozenset[str]  # operators, through views

    @classmethod
    def of(cls, node: ir.Node, value: ir.Value) -> _Cast:
        source = "unknown" if value.dtype is None else value.dtype.name.lower()
        target = ir.DataType(node.attributes.get_int("to")).name.lower()
        made = _through_views(value)
        return cls(source, target, (node.name or "").split("/")[0], made, frozenset(_users(node.outputs[0])))


_VIEWS = {"Reshape", "Unsqueeze", "Squeeze", "Transpose", "Expand", "Concat"}


def _through_views(value: ir.Value) -> str:
    node = value.producer()
    while node is not None and node.op_type in _VIEWS and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return "input" if node is None else node.op_type


def _users(value: ir.Value) -> set[str]:
    found = {"output"} if value.is_graph_output() else set()
    for node, _ in value.uses():
        found |= _users(node.outputs[0]) if node.op_type in _VIEWS else {node.op_type}
    return found


_REASONS: tuple[tuple[str, str, str], ...] = (
    # target, pattern of "place | producer > consumers", reason; the first that fits
    ("float", r"sample\.(context|endpoints|offset|logit) \|", "where RDSA looks is computed in float32"),
    ("float", r"(span\.\d+|classify|actionness\.mlp\.\d+) \|", "last product of a span or a score, in float32"),
    ("float", r"> .*(LayerNormalization|Pow)", "LayerNorm and RMSNorm in float32"),
    ("float", r"> .*(Softmax|Where)", "softmax in float32"),
    ("float", r"> .*ReduceL2", "cosine of the saliency in float32"),
    ("float16", r"\| LayerNormalization >|norm \|", "what leaves a norm is half"),
    ("float16", r"\| Softmax >", "weights of attention meet half values"),
    ("float16", r"\| (Sin|Cos) >", "sine positions, computed in float32"),
    ("float16", r"(actionness|sparse) \| (Sub|Mul) > Mul$", "weights of an interpolation, computed in float32"),
    ("float", r"\| (Add|MatMul|Gemm|Split|Gather|Conv) >", "from a half product into the float32 stream"),
    ("float16", r"\| \w+ > (Conv|MatMul|Gemm|Split)", "from the float32 stream into a half product"),
)


def _reason(cast: _Cast) -> str:
    if cast.source == "uint8":
        return "pixels are normalised in float32"
    if {cast.source, cast.target} & {"bool", "int32", "int64"}:
        return "masks, lengths and indices"
    told = f"{cast.place} | {cast.producer} > {' '.join(sorted(cast.consumers))}"
    return next((why for to, form, why in _REASONS if to == cast.target and re.search(form, told)), UNEXPLAINED)
