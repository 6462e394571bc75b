"""sdst::RDSA in ONNX: the node, and the function that computes it where no plugin does.

The signature is that of `sdst_train.model.rdsa.rdsa`; the two extra attributes let TensorRT's parser find the plugin.
The function equals it too; its arithmetic is float32 whatever the type of value. Its body has the numbers of heads and
points of the file's own nodes in it, so that no shape is computed that is known. Shapes: B batch, T clips, M moments,
F width, H heads, P points.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import onnx
from onnx import helper
from onnxscript import ir

from .errors import ExportError
from .lowering.builder import FLOAT, INT32, UNKNOWN, GraphBuilder, Tensor
from .lowering.sampling import Sizes, rdsa_body

OPSET = 20
DOMAIN = "sdst"
NAME = "RDSA"
PLUGIN_VERSION = "1"
Node = TypeVar("Node", ir.Node, onnx.NodeProto)
INPUTS = ("value", "endpoints", "reference", "length")


def rdsa_node(
    b: GraphBuilder, step: int, inputs: Sequence[Tensor], moments: int, sizes: Sizes
) -> Tensor:  # fmt: skip
    """One sdst::RDSA node, named by its step from 0, with value, endpoints, reference and length: B M F."""
    out = b.op(
        NAME, *inputs, domain=DOMAIN, num_heads=sizes.heads, num_points=sizes.points, plugin_version=PLUGIN_VERSION,
        plugin_namespace=DOMAIN, shape=("B", moments, sizes.width),
    )  # fmt: skip
    b.nodes[-1].name = f"{DOMAIN}::{NAME}.step{step + 1}"  # what Polygraphy and TensorRT's inspector show
    return out


def rdsa_nodes(nodes: Iterable[Node]) -> list[Node]:
    """The sdst::RDSA nodes among the nodes of a graph, in order."""
    return [node for node in nodes if node.domain == DOMAIN and node.op_type == NAME]


def add_function(model: onnx.ModelProto, width: int) -> None:
    """Give the model the body of sdst::RDSA for nodes of this width, F; ONNX Runtime and Polygraphy then run it with no
    library of ours. Raises ExportError when its nodes differ in heads or points.
    """
    sizes = {_sizes(node, width) for node in rdsa_nodes(model.graph.node)}
    if len(sizes) != 1:
        raise ExportError(f"expected sdst::RDSA nodes of one number of heads and points, got {len(sizes)}")
    b = GraphBuilder(function=True)
    value, endpoints, reference, length = (Tensor(name, kind) for name, kind in zip(INPUTS, _TYPES, strict=True))
    out = rdsa_body(b, value, endpoints, reference, length, sizes.pop())
    function = helper.make_function(
        DOMAIN, NAME, INPUTS, [out.name], b.nodes, [helper.make_opsetid("", OPSET)], list(_ATTRIBUTES)
    )
    del model.functions[:]
    model.functions.append(function)


_TYPES = (UNKNOWN, FLOAT, FLOAT, INT32)
_ATTRIBUTES = ("num_heads", "num_points")


def _sizes(node: onnx.NodeProto, width: int) -> Sizes:
    values = {attribute.name: attribute.i for attribute in node.attribute}
    return Sizes(width, *(values[name] for name in _ATTRIBUTES))
