"""The floor of a graph on a CPU: its products alone, at the shapes and with the values of one run, back to back.

Whatever else a graph does (norms, softmax, biases, transposes, gathers) costs time on top. The products are run by ONNX
Runtime in one session, each from an input to an output of its own, so that nothing between them is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import helper
from onnx.inliner import inline_local_functions

from sdst_runtime.sessions.ort import import_onnxruntime

_PRODUCTS = ("MatMul", "Gemm", "Conv")


def products_alone(path: Path, inputs: Mapping[str, np.ndarray], threads: int) -> Callable[[], object]:
    """A call that runs the products of the graph at `path` as they are for `inputs`."""
    model = inline_local_functions(onnx.load(path))
    products = [node for node in model.graph.node if node.op_type in _PRODUCTS]
    constants = {x.name: x for x in model.graph.initializer}
    moving = dict.fromkeys(name for node in products for name in node.input if name and name not in constants)
    values = _values(model, [name for name in moving if name not in inputs], inputs, threads) | dict(inputs)

    nodes, used = [], {}
    for number, node in enumerate(products):
        used |= {name: constants[name] for name in node.input if name in constants}
        alone = onnx.NodeProto()
        alone.CopyFrom(node)
        alone.output[:] = [f"product_{number}"]
        nodes.append(alone)
    given = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(values[n].dtype), values[n].shape)
             for n in moving]  # fmt: skip
    made = [helper.make_empty_tensor_value_info(node.output[0]) for node in nodes]
    graph = helper.make_graph(nodes, "products", given, made, list(used.values()))
    alone = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    session = _open(onnx.shape_inference.infer_shapes(alone), threads)
    binding = session.io_binding()
    for name in moving:
        binding.bind_cpu_input(name, np.ascontiguousarray(values[name]))
    for output in session.get_outputs():
        binding.bind_output(output.name)
    return lambda: session.run_with_iobinding(binding)


def _values(
    model: onnx.ModelProto, names: list[str], inputs: Mapping[str, np.ndarray], threads: int
) -> dict[str, np.ndarray]:
    """Tensors of one run."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    session = _open(onnx.shape_inference.infer_shapes(watched), threads)
    wanted = {name: inputs[name] for name in (given.name for given in session.get_inputs())}
    return dict(zip(names, session.run(names, wanted), strict=True))


def _open(model: onnx.ModelProto, threads: int):
    runtime = import_onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.add_session_config_entry("session.force_spinning_stop", "1")  # else the next variant shares its cores
    return runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
