"""What an exported graph holds and costs: nodes, casts, types, FLOPs and bytes by stage.

FLOPs are those of the graph as written: a multiplication and an addition are two, another operation one an element,
moves none. Bytes are what nodes read and write when none are fused; views count nothing. Both for given sizes of the
free axes. Shapes: B batch, T clips, L tokens, N clips of the vision model, M moments.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnxscript import ir

from sdst_runtime.contracts import KIND_KEY

from ..errors import ExportError
from ..rdsa_op import NAME


@dataclass(frozen=True)
class StageCost:
    """One stage of a model."""

    nodes: int
    flops: int
    activation_bytes: int
    weight_bytes: int  # a weight that several steps use counts once, in the stage that uses it first


@dataclass(frozen=True)
class ModelSummary:
    """One graph."""

    nodes: int
    operators: dict[str, int]
    functions: list[str]
    casts: dict[str, dict[str, int]]  # "float to float16" -> module, "" outside all -> Cast nodes
    weights: dict[str, int]  # type -> elements
    activations: dict[str, int]  # type -> tensors
    half_weights: float  # share of the elements among floating-point ones
    half_activations: float  # share of the tensors among floating-point ones
    sizes: dict[str, int]  # of the free axes, for the costs below
    stages: dict[str, StageCost]


def summarise(model: ir.Model, sizes: Mapping[str, int]) -> ModelSummary:
    """Read all of it from the graph. Raises ExportError when a shape names an axis that `sizes` lacks."""
    nodes = list(model.graph)
    weights = [v for v in model.graph.initializers.values() if v.const_value is not None]
    weight_types: Counter[str] = Counter()
    for value in weights:
        weight_types[_type(value)] += _size(value, sizes)
    tensors = Counter(_type(value) for node in nodes for value in node.outputs)
    return ModelSummary(
        nodes=len(nodes),
        operators=dict(Counter(node.op_type for node in nodes).most_common()),
        functions=[f"{domain}::{name}" for domain, name, _ in model.functions],
        casts=_casts(nodes),
        weights=dict(weight_types),
        activations=dict(tensors),
        half_weights=_half_share(weight_types),
        half_activations=_half_share(tensors),
        sizes={axis: n for axis, n in sizes.items() if axis in _free_axes(model)},
        stages=_stages(model, sizes),
    )


def _casts(nodes: Sequence[ir.Node]) -> dict[str, dict[str, int]]:
    casts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for node in nodes:
        if node.op_type == "Cast":
            source, target = (_type(value) for value in (*node.inputs, *node.outputs))
            casts[f"{source} to {target}"][_place(node)] += 1
    return {types: dict(places.most_common()) for types, places in casts.items()}


_STAGES = (  # of the head, by the place among the modules, the first that fits
    ("project_text", "text projection"),
    ("dense", "dense stream"),
    ("sparse.sample", "RDSA"),
    ("sparse", "sparse stream"),
    ("classify", "heads"),
    ("actionness", "heads"),
    ("presence", "heads"),
    ("text_pool", "heads"),
    ("", "masks, places, saliency"),
)
_VIEWS = {"Reshape", "Unsqueeze", "Squeeze", "Shape", "Identity"}
_MOVES = _VIEWS | {"Transpose", "Concat", "Expand", "Gather", "GatherElements", "GatherND", "Slice", "Split", "Cast"}
_FLOPS_AN_ELEMENT = {"Softmax": 5, "LayerNormalization": 8, "Gelu": 10}


def _stages(model: ir.Model, sizes: Mapping[str, int]) -> dict[str, StageCost]:
    nodes: Counter[str] = Counter()
    flops: Counter[str] = Counter()
    moved: Counter[str] = Counter()
    weights: dict[str, int] = defaultdict(int)
    seen: set[str] = set()
    for node in model.graph:
        stage = _stage(node, model.metadata_props.get(KIND_KEY, ""))
        nodes[stage] += 1
        flops[stage] += _flops(node, sizes)
        for value in (*node.inputs, *node.outputs):
            if value is None:
                continue
            if value.const_value is None:
                moved[stage] += 0 if node.op_type in _VIEWS else _bytes(value, sizes)
            elif value.name not in seen:
                seen.add(value.name or "")
                weights[stage] += _bytes(value, sizes)
    return {stage: StageCost(nodes[stage], flops[stage], moved[stage], weights[stage]) for stage in nodes}


def _stage(node: ir.Node, kind: str) -> str:
    if kind != "head":
        return kind
    if node.op_type == NAME:
        return "RDSA"
    place = f"{_place(node)}."
    return next(stage for prefix, stage in _STAGES if not prefix or place.startswith(f"{prefix}."))


def _place(node: ir.Node) -> str:
    return (node.name or "").split("/")[0]


def _flops(node: ir.Node, sizes: Mapping[str, int]) -> int:
    out = node.outputs[0]
    elements = _size(out, sizes)
    if node.op_type == "MatMul":
        return 2 * elements * _shape(node.inputs[0], sizes)[-1]
    if node.op_type == "Gemm":
        inner = 0 if node.attributes.get_int("transA", 0) else 1
        return 2 * elements * _shape(node.inputs[0], sizes)[inner]
    if node.op_type == "Conv":
        return 2 * elements * math.prod(_shape(node.inputs[1], sizes)[1:])
    if node.op_type == NAME:
        return _rdsa_flops(node, sizes)
    return 0 if node.op_type in _MOVES else elements * _FLOPS_AN_ELEMENT.get(node.op_type, 1)


def _rdsa_flops(node: ir.Node, sizes: Mapping[str, int]) -> int:
    """Blend three rows of 2HP and add them, softmax over P, then blend and add P samples of F channels."""
    B, M, F = _shape(node.outputs[0], sizes)
    P = node.attributes["num_points"].as_int()
    HP = node.attributes["num_heads"].as_int() * P
    return B * M * (3 * 4 * 2 * HP + (5 + 6) * HP + 4 * P * F)


def _bytes(value: ir.Value, sizes: Mapping[str, int]) -> int:
    return math.ceil(_size(value, sizes) * ir.DataType(value.dtype or ir.DataType.FLOAT).itemsize)


def _size(value: ir.Value | None, sizes: Mapping[str, int]) -> int:
    return math.prod(_shape(value, sizes))


def _shape(value: ir.Value | None, sizes: Mapping[str, int]) -> list[int]:
    if value is None or value.shape is None:
        raise ExportError(
            f"the shape of {value and value.name!r} is unknown after the export; export with another torch"
        )
    return [dim if isinstance(dim, int) else _axis(str(dim.value), sizes) for dim in value.shape]


def _axis(expression: str, sizes: Mapping[str, int]) -> int:
    """The size of a free axis or of a product of such, as in "4*N"."""
    factors = [factor.strip() for factor in expression.split("*")]
    unknown = [factor for factor in factors if not factor.isdigit() and factor not in sizes]
    if unknown:
        raise ExportError(f"axis {expression!r}: expected a product of {', '.join(sizes)}, got {unknown[0]!r}")
    return math.prod(int(factor) if factor.isdigit() else sizes[factor] for factor in factors)


def _free_axes(model: ir.Model) -> set[str]:
    return {
        str(dim.value) for value in model.graph.inputs for dim in value.shape or () if isinstance(dim, ir.SymbolicDim)
    }


def _type(value: ir.Value | None) -> str:
    return "unknown" if value is None or value.dtype is None else value.dtype.name.lower()


def _half_share(counts: Mapping[str, int]) -> float:
    floats = sum(counts.get(name, 0) for name in ("float16", "float"))
    return counts.get("float16", 0) / floats if floats else 0.0
