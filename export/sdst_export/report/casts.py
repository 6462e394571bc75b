"""Every Cast of an exported graph, grouped by its types and by why it is there.

Modules that were kept in float32 (keep.py) bring casts of their own: before what goes in, behind what they hand on, up
to the next norm or product, and where that meets a half tensor. A node is in a module when its name says so.

A cast that no rule explains is listed as `UNEXPLAINED`: a test refuses it, so a change that lets a type slip is seen.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from onnxscript import ir

from sdst_runtime.sessions.base import PROJECTED

UNEXPLAINED = "unexplained"
KEPT_CAST = "kept in float32 by --keep-fp32"


@dataclass(frozen=True)
class CastGroup:
    """Casts of one kind."""

    source: str  # types in lower case: float, float16, bool
    target: str
    reason: str
    count: int
    places: list[str]  # modules, each once


def cast_groups(nodes: Iterable[ir.Node], kept: Sequence[str] = ()) -> list[CastGroup]:
    """All Cast nodes of a graph's top level, the largest group first. `kept` are paths of modules kept in float32."""
    counts: Counter[tuple[str, str, str]] = Counter()
    places: dict[tuple[str, str, str], set[str]] = {}
    for node in nodes:
        if node.op_type != "Cast" or node.inputs[0] is None:
            continue
        cast = _Cast.of(node, node.inputs[0], kept)
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
    kept: bool  # whether a module that was kept in float32 asks for it

    @classmethod
    def of(cls, node: ir.Node, value: ir.Value, kept: Sequence[str]) -> _Cast:
        source = "unknown" if value.dtype is None else value.dtype.name.lower()
        target = ir.DataType(node.attributes.get_int("to")).name.lower()
        made = _through_views(value)
        users = frozenset(_users(node.outputs[0]))
        return cls(source, target, _place(node), made, users, _asked_by_kept(node, value, kept))


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


def _place(node: ir.Node) -> str:
    return (node.name or "").split("/")[0]


def _inside(node: ir.Node, kept: Sequence[str]) -> bool:
    return any(f"{_place(node)}.".startswith(f"{module}.") for module in kept)


def _asked_by_kept(node: ir.Node, value: ir.Value, kept: Sequence[str]) -> bool:
    if node.attributes.get_int("to") == ir.DataType.FLOAT16:
        return _handed_on(value, kept)
    cast = node.outputs[0]
    beside = [other for user, _ in cast.uses() for other in user.inputs if other is not cast]
    return _inside(node, kept) or any(_handed_on(other, kept) for other in beside)


def _handed_on(value: ir.Value | None, kept: Sequence[str]) -> bool:
    """Whether a kept module made this float32 tensor, or what it was made from without a norm or a cast between."""
    seen: set[ir.Value] = set()
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if value is None or value in seen or value.dtype != ir.DataType.FLOAT:
            continue
        seen.add(value)
        node = value.producer()
        if value.name == PROJECTED or (node is not None and (_inside(node, kept) or (kept and node.op_type in _WAVES))):
            return True
        if node is not None and not _starts_anew(node):
            waiting += node.inputs
    return False


_WAVES = {"Sin", "Cos"}  # positions have the type of `projected`, which is float32 where its last product was kept


def _starts_anew(node: ir.Node) -> bool:
    return node.op_type in {"Cast", "LayerNormalization", "Softmax"} or bool(re.search(r"norm[^.]*$", _place(node)))


_Reasons = tuple[tuple[str, str, str], ...]  # target, pattern of "place | producer > consumers", reason; the first fits
_BEFORE_KEPT: _Reasons = (
    ("float", r"sample\.(context|endpoints|offset|logit) \|", "where RDSA looks is computed in float32"),
    ("float", r"(span\.\d+|classify|actionness\.mlp\.\d+) \|", "last product of a span or a score, in float32"),
    ("float", r"> .*(LayerNormalization|Pow)", "LayerNorm and RMSNorm in float32"),
    ("float", r"> .*(Softmax|Where)", "softmax in float32"),
    ("float", r"> .*ReduceL2", "cosine of the saliency in float32"),
    ("float16", r"\| Softmax >", "weights of attention meet half values"),
    ("float16", r"\| (Sin|Cos) >", "sine positions, computed in float32"),
    ("float16", r"(actionness|sparse) \| (Sub|Mul) > Mul$", "weights of an interpolation, computed in float32"),
)
_BEHIND_KEPT: _Reasons = (
    ("float16", r"\| LayerNormalization >|norm \|", "what leaves a norm is half"),
    ("float", r"\| (Add|MatMul|Gemm|Split|Gather|Conv) >", "from a half product into the float32 stream"),
    ("float16", r"\| \w+ > (Conv|MatMul|Gemm|Split)", "from the float32 stream into a half product"),
)


def _reason(cast: _Cast) -> str:
    if cast.source == "uint8":
        return "pixels are normalised in float32"
    if {cast.source, cast.target} & {"bool", "int32", "int64"}:
        return "masks, lengths and indices"
    told = f"{cast.place} | {cast.producer} > {' '.join(sorted(cast.consumers))}"
    kept: _Reasons = ((cast.target, "", KEPT_CAST),) if cast.kept else ()
    reasons = (*_BEFORE_KEPT, *kept, *_BEHIND_KEPT)
    return next((why for to, form, why in reasons if to == cast.target and re.search(form, told)), UNEXPLAINED)
