"""A graph in the form that TensorRT's parser makes fewest layers of: the same arithmetic, written for it.

Functions are inlined, whose nodes would have the same names at each call; constants and nodes that are there twice
stand once; a cast to the type that is there already goes; and a constant has as many axes as what it meets, for which
the parser would put in a layer each time. Measured in docs/export.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx
import onnx.inliner
from onnx import numpy_helper

_BROADCASTING = {"Add", "Sub", "Mul", "Div", "Min", "Max", "Equal", "Where", "MatMul", "LayerNormalization"}
_CASTS = {"Cast", "CastLike"}


def parser_form(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model without functions; inputs, outputs and metadata are as they were."""
    model = onnx.inliner.inline_local_functions(model)
    graph = model.graph
    _constants_once(graph)
    nodes_once(graph)
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    _drop_casts(model.graph)
    _add_axes(model.graph)
    _drop_unused(model.graph)
    return model


def _constants_once(graph: onnx.GraphProto) -> None:
    """Constant nodes become initialisers, one for those that are alike."""
    known: dict[bytes, str] = {}
    for tensor in graph.initializer:
        known.setdefault(_content(tensor), tensor.name)
    renamed, kept = {}, []
    for node in graph.node:
        if node.op_type != "Constant" or node.attribute[0].name != "value":
            kept.append(node)
            continue
        tensor = node.attribute[0].t
        name = known.setdefault(_content(tensor), node.output[0])
        if name == node.output[0]:
            graph.initializer.add().CopyFrom(tensor)
            graph.initializer[-1].name = name
        renamed[node.output[0]] = name
    _keep(graph, kept, renamed)


def _content(tensor: onnx.TensorProto) -> bytes:
    """What tells constants apart; of one whose values lie in another file, where they lie."""
    bare = onnx.TensorProto()
    bare.CopyFrom(tensor)
    if not tensor.external_data:  # values may be written in several ways
        bare.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)))
    bare.ClearField("name")
    return bare.SerializeToString()


def nodes_once(graph: onnx.GraphProto, among: Callable[[onnx.NodeProto], bool] = lambda node: True) -> None:
    """One node for those, `among` some, that compute the same of the same."""
    outputs = {value.name for value in graph.output}
    known: dict[tuple[object, ...], onnx.NodeProto] = {}
    renamed, kept = {}, []
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        attributes = sorted(attribute.SerializeToString() for attribute in node.attribute)
        first = known.setdefault((node.domain, node.op_type, *node.input, *attributes), node)
        if first is node or outputs & set(node.output) or not among(node):
            kept.append(node)
        else:
            renamed |= dict(zip(node.output, first.output))
    _keep(graph, kept, renamed)


def _drop_casts(graph: onnx.GraphProto) -> None:
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info)}
    renamed, kept = {}, []
    for node in graph.node:
        source = renamed.get(node.input[0], node.input[0]) if node.input else ""
        if node.op_type in _CASTS and source in types and types[source] == types.get(node.output[0]):
            renamed[node.output[0]] = source
        else:
            kept.append(node)
    _keep(graph, kept, renamed)


def _add_axes(graph: onnx.GraphProto) -> None:
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in (*graph.value_info, *graph.output)}
    held = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        rank = ranks.get(node.output[0], 0) if node.op_type in _BROADCASTING else 0
        for place, name in enumerate(node.input):
            if name in held and len(held[name].dims) < rank:
                node.input[place] = _with_axes(graph, held, name, rank)


def _with_axes(graph: onnx.GraphProto, held: dict[str, onnx.TensorProto], name: str, rank: int) -> str:
    own = f"{name}.{rank}"
    if own not in held:
        tensor = held[own] = onnx.TensorProto()
        tensor.CopyFrom(held[name])
        tensor.name = own
        tensor.dims[:] = [1] * (rank - len(tensor.dims)) + list(tensor.dims)
        graph.initializer.append(tensor)
    return own


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _keep(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto], renamed: dict[str, str]) -> None:
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    for node in kept:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    del graph.node[:]
    graph.node.extend(kept)
