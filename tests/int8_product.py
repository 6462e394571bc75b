"""Makes runtime/sdst_runtime/sessions/assets/int8_product.onnx:  python tests/int8_product.py"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sdst_runtime.sessions.int8_products import MODEL, K, N, known_weight


def known_product_model() -> onnx.ModelProto:
    """x B K float -> Q/DQ of scale 1 -> times a K N int8 weight with scales 1 -> y."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["weight", "scales", "zeros"], ["restored"], axis=1),
        helper.make_node("MatMul", ["rounded", "restored"], ["y"]),
    ]
    constants = {
        "scale": np.float32(1),
        "zero": np.int8(0),
        "weight": known_weight(),
        "scales": np.ones(N, np.float32),
        "zeros": np.zeros(N, np.int8),
    }
    graph = helper.make_graph(
        nodes,
        "int8_product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", N])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


if __name__ == "__main__":
    MODEL.write_bytes(known_product_model().SerializeToString())
