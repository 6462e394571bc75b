"""Explicit quantisation: Q/DQ around the products of a graph that have a weight, with onnx-graphsurgeon.

    x -> QuantizeLinear -> DequantizeLinear -> MatMul, Gemm or Conv <- DequantizeLinear <- int8 weight

Who reads x otherwise still gets x. Products that read one x share its scale, and each has a pair of its own: ONNX
Runtime computes in int8 only what is alone behind its QuantizeLinear. Scales are constants in the type of the tensor,
zero points are 0 and int8. That is what TensorRT's explicit quantisation takes without a calibrator: per-tensor
activations, per-channel weights "rooted at a constant" (NvInfer.h 10.3, IDequantizeLayer), as int8 constants, which its
guide calls pre-quantised weights. Each product has a DequantizeLinear of its own for the weight, also where steps share
one: it is fused with the one product that reads it.

A product of two activations (attention, the cosine) stays: one of the two comes from a softmax or is a score.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues

from sdst_runtime.errors import ContractError, InputError

from .scales import quantise, scale_in, weight_scales

DEFAULT_KEPT = (  # pattern of a layer's name, and why it stays
    (r"sparse\.sample\.(context|endpoints|offset|logit)", "says where RDSA looks"),
    (r"sparse\.span\.4", "last layer of the moments"),
    (r"classify|actionness\.mlp\.4|presence\.mlp\.2", "last layer of a score"),
    (r"text_pool\.weight", "goes into a softmax"),
)


@dataclass(frozen=True)
class Product:
    """One node with a weight."""

    node: str
    layer: str  # the module it comes from: all steps of the head share its name
    activation: str  # the tensor that it reads
    weight: str  # of the initialiser
    axis: int  # of the weight, the output channels


@dataclass(frozen=True)
class WeightScales:
    """Of one weight; the scales themselves are in the graph."""

    axis: int
    channels: int
    least: float
    largest: float


@dataclass(frozen=True)
class Quantised:
    """A graph with Q/DQ, and what was put into it."""

    model: onnx.ModelProto
    activations: dict[str, float]  # tensor -> scale
    weights: dict[str, WeightScales]


def find_products(model: onnx.ModelProto) -> list[Product]:
    """The MatMul, Gemm and Conv nodes with a constant weight at the top level of a graph, in order.

    Raises ContractError when the graph holds Q/DQ already.
    """
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        raise ContractError("the graph holds QuantizeLinear already; give the bundle that it was made from")
    return [product for node in _import(model).nodes if (product := _product(node)) is not None]


def default_kept(layers: Iterable[str]) -> dict[str, str]:
    """The layers among `layers` that stay as they are unless asked otherwise, and why."""
    return {layer: reason for layer in layers for pattern, reason in DEFAULT_KEPT if re.fullmatch(pattern, layer)}


def within(graphs: Sequence[onnx.ModelProto], names: Iterable[str]) -> set[str]:
    """The modules of one or more graphs that `names` name, or that are parts of such.

    Raises InputError for a name that matches none.
    """
    modules = {node.name.rpartition("/")[0] for graph in graphs for node in graph.graph.node} - {""}
    matches = set()
    for name in names:
        fits = {module for module in modules if f"{module}.".startswith(f"{name}.")}
        if not fits:
            raise InputError(f"no module {name!r} to exclude; {_hint(graphs, name)}")
        matches |= fits
    return matches


def quantise_model(
    model: onnx.ModelProto, layers: Iterable[str], scales: Mapping[str, float], folder: Path = Path()
) -> Quantised:
    """A copy of `model` with Q/DQ around the products of `layers`; `scales` of activations by tensor name.

    Weights that lie in a file of `folder`, beside the graph, are read one at a time; those that stay stay there.
    Functions, RDSA nodes, metadata and all other nodes are as they were. Raises InputError when a scale is missing.
    """
    wanted = set(layers)
    graph: Any = _import(model)
    edit = _Edit(graph, scales, folder)
    for node in list(graph.nodes):
        product = _product(node)
        if product is not None and product.layer in wanted:
            edit.wrap(node, product)
    graph.cleanup()
    quantised = gs.export_onnx(graph)
    quantised.functions.extend(model.functions)
    del quantised.metadata_props[:]
    quantised.metadata_props.extend(model.metadata_props)
    quantised.producer_name = model.producer_name
    return Quantised(quantised, edit.activations, edit.weights)


def _hint(graphs: Sequence[onnx.ModelProto], name: str) -> str:
    """What `name` may have meant: a layer with a product, or what holds such layers."""
    nodes = [node for graph in graphs for node in _import(graph).nodes]
    layers = list(dict.fromkeys(product.layer for node in nodes if (product := _product(node)) is not None))
    above = {layer.rsplit(".", depth)[0] for layer in layers for depth in range(layer.count(".") + 1)}
    near = difflib.get_close_matches(name, sorted(above), 1)
    return f"did you mean {near[0]}?" if near else f"expected such as {', '.join(layers[:4])}"


def _import(model: onnx.ModelProto) -> gs.Graph:
    """Without functions, which graphsurgeon would take for subgraphs to edit too."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.functions[:]
    return gs.import_onnx(bare)


class _Edit:
    """The nodes and constants that were added to a graph so far."""

    def __init__(self, graph: Any, scales: Mapping[str, float], folder: Path) -> None:
        self.activations: dict[str, float] = {}
        self.weights: dict[str, WeightScales] = {}
        self._graph, self._scales, self._folder = graph, scales, folder
        self._activations: dict[str, tuple[gs.Constant, ...]] = {}
        self._constants: dict[str, tuple[gs.Constant, ...]] = {}

    def wrap(self, node: Any, product: Product) -> None:
        source: Any = _require_source(node.inputs[1])
        node.inputs[0] = self._activation(node, product, np.dtype(source.dtype))
        node.inputs[1] = self._weight(node, product)

    def _activation(self, node: Any, product: Product, dtype: np.dtype[Any]) -> gs.Variable:
        tensor = node.inputs[0]
        if tensor.name not in self._activations:
            if tensor.name not in self._scales:
                raise InputError(f"{product.layer}: no scale for {tensor.name}; calibrate with data that reaches it")
            scale = scale_in(self._scales[tensor.name], dtype)
            self.activations[tensor.name] = float(scale)
            self._activations[tensor.name] = self._scale(tensor.name, scale)
        constants = self._activations[tensor.name]
        codes = gs.Variable(f"{product.node}_int8", np.int8, tensor.shape)
        restored = gs.Variable(f"{product.node}_from_int8", dtype, tensor.shape)
        self._add(node, "QuantizeLinear", f"{product.node}_QuantizeLinear", [tensor, *constants], codes)
        self._add(node, "DequantizeLinear", f"{product.node}_DequantizeLinear", [codes, *constants], restored)
        return restored

    def _weight(self, node: Any, product: Product) -> gs.Variable:
        if product.weight not in self._constants:
            weight = _weight(node.inputs[1], self._folder)
            scales = weight_scales(weight, product.axis)
            codes = gs.Constant(f"{product.weight}/int8", quantise(weight, scales, product.axis))
            self._constants[product.weight] = codes, *self._scale(product.weight, scales)
            self.weights[product.weight] = WeightScales(
                product.axis, scales.size, float(scales.min()), float(scales.max())
            )
        constants = self._constants[product.weight]
        restored = gs.Variable(f"{product.node}_weight", constants[1].dtype, constants[0].shape)
        name = f"{product.node}_DequantizeLinear_weight"
        self._add(node, "DequantizeLinear", name, constants, restored, axis=product.axis)
        return restored

    def _scale(self, name: str, scale: np.ndarray) -> tuple[gs.Constant, gs.Constant]:
        return gs.Constant(f"{name}/scale", scale), gs.Constant(f"{name}/zero", np.zeros(scale.shape, np.int8))

    def _add(
        self, reader: Any, kind: str, name: str, inputs: Iterable[Any], output: Any, **attributes: Any
    ) -> None:  # fmt: skip
        """Before the first node that reads it: the others keep their order, by which taps.py knows them."""
        place = next(i for i, node in enumerate(self._graph.nodes) if node is reader)
        self._graph.nodes.insert(place, gs.Node(kind, name, attributes, list(inputs), [output]))


_AXES: dict[str, Callable[[Any], int]] = {  # of the output channels
    "MatMul": lambda node: 1,
    "Gemm": lambda node: 0 if node.attrs.get("transB", 0) else 1,
    "Conv": lambda node: 0,
}


def _product(node: Any) -> Product | None:
    if node.op not in _AXES or isinstance(node.inputs[0], gs.Constant):
        return None
    source = _source(node.inputs[1])
    if source is None or (node.op != "Conv" and len(source.shape) != 2):
        return None
    return Product(node.name, _place(node.name), node.inputs[0].name, node.inputs[1].name, _AXES[node.op](node))


def _place(node: str) -> str:
    """The module of a node's name; the name itself outside all modules."""
    return node.rpartition("/")[0] or node


def _source(tensor: Any) -> gs.Constant | None:
    """The constant that a tensor is, or is the transpose of: graphs of more than 2 GB keep such transposes."""
    if isinstance(tensor, gs.Constant):
        return tensor
    producer = tensor.inputs[0] if len(tensor.inputs) == 1 else None
    if producer is not None and producer.op == "Transpose" and isinstance(producer.inputs[0], gs.Constant):
        return producer.inputs[0]
    return None


def _require_source(tensor: Any) -> gs.Constant:
    source = _source(tensor)
    assert source is not None, "a product has a constant weight"
    return source


def _weight(tensor: Any, folder: Path) -> np.ndarray:
    source = _require_source(tensor)
    values = _stored(source, folder)
    return values if source is tensor else values.transpose(tensor.inputs[0].attrs.get("perm"))


def _stored(constant: gs.Constant, folder: Path) -> np.ndarray:
    """graphsurgeon does not know the folder of weights beside the graph; onnx keeps in the tensor what it has read."""
    lazy = constant._values
    if not isinstance(lazy, LazyValues):
        return constant.values
    tensor = onnx.TensorProto()
    tensor.CopyFrom(lazy.tensor)
    return numpy_helper.to_array(tensor, str(folder))
