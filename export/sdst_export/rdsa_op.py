"""sdst::RDSA in ONNX: how the exporter writes the node, and how a model gets the function that computes it.

The signature is that of `sdst_train.model.rdsa.rdsa`; the two extra attributes let TensorRT's parser find the plugin.
"""

from __future__ import annotations

import torch
from onnxscript import ir

from .rdsa_body import RDSA

OPSET = 20
DOMAIN = "sdst"
NAME = "RDSA"
PLUGIN_VERSION = "1"


def symbolic_rdsa(
    value: torch.Tensor,
    endpoints: torch.Tensor,
    reference: torch.Tensor,
    length: torch.Tensor,
    num_heads: int,
    num_points: int,
) -> torch.Tensor:
    """Stands in for the op while torch.onnx.export traces: becomes one sdst::RDSA node."""
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{NAME}",
        (value, endpoints, reference, length),
        attrs={
            "num_heads": num_heads,
            "num_points": num_points,
            "plugin_version": PLUGIN_VERSION,
            "plugin_namespace": DOMAIN,
        },
        dtype=value.dtype,
        shape=(value.shape[0], reference.shape[1], value.shape[2]),
        version=1,
    )


def add_function(model: ir.Model) -> None:
    """Give the model the body of sdst::RDSA, so that ONNX Runtime and Polygraphy run it with no library of ours."""
    function = ir.from_proto(RDSA.to_function_proto())
    model.functions[function.identifier()] = function
    model.graph.opset_imports[DOMAIN] = 1
