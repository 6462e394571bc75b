"""From what was built to a checked ONNX file: one path for the head and both towers.

A graph stays in onnxscript's form until it is a file: a protobuf message with the weights inside ends at 2 GB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
from onnx import helper
from onnxscript import ir

from sdst_runtime.contracts import KIND_KEY
from sdst_runtime.files import atomic_files, remove
from sdst_runtime.grounding.bundle import DATA_SUFFIX

from .errors import ExportError
from .lowering.builder import GraphBuilder
from .rdsa_op import DOMAIN, OPSET, add_function

INLINE_LIMIT = 2_000_000_000  # bytes of weights; a protobuf message must stay below 2^31
IR_VERSION = 10  # of ONNX 1.16, which TensorRT 10.3 reads
Type = tuple[int, Sequence[int | str]]  # of onnx.TensorProto, and the shape


def write_graph(
    b: GraphBuilder,
    inputs: Mapping[str, Type],
    outputs: Mapping[str, Type],
    metadata: Mapping[str, str],
    rdsa_width: int | None = None,
) -> ir.Model:
    """What was built as a model of opset 20, with all shapes; sdst::RDSA gets a body when `rdsa_width`, F, is given."""
    opsets = [helper.make_opsetid("", OPSET), *([helper.make_opsetid(DOMAIN, 1)] if rdsa_width else [])]
    given, made = ([helper.make_tensor_value_info(n, *kind) for n, kind in x.items()] for x in (inputs, outputs))
    known = [helper.make_tensor_value_info(name, *kind) for name, kind in b.shapes.items()]
    weights = [helper.make_tensor_value_info(w.name or "", int(w.dtype), w.shape.numpy()) for w in b.weights]
    graph = helper.make_graph(b.nodes, metadata[KIND_KEY], given + weights, made, b.initializers, value_info=known)
    model = helper.make_model(graph, opset_imports=opsets, producer_name="sdst", ir_version=IR_VERSION)
    if rdsa_width:
        add_function(model, rdsa_width)
    helper.set_model_props(model, dict(metadata))
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    written = ir.from_proto(model)
    for weight, value in zip(b.weights, written.graph.inputs[len(given) :], strict=True):
        value.const_value = weight
        written.graph.register_initializer(value)
    del written.graph.inputs[len(given) :]
    return written


def save_model(model: ir.Model, path: Path, inline_limit: int = INLINE_LIMIT) -> None:
    """Check and write `path`; more than `inline_limit` bytes of weights go to a second file, `path` + `.data`.

    Both are written whole before either is put in place, the weights first. Raises ExportError when onnx.checker
    refuses the graph and InputError when `path` cannot be written.
    """
    data = path.with_name(path.name + DATA_SUFFIX)
    apart = weight_bytes(model) > inline_limit
    with atomic_files((data, path) if apart else (path,)) as folder:
        ir.save(model, folder / path.name, external_data=data.name if apart else None)
        _check(folder / path.name)
    if not apart:
        remove(data)


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all weights."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)


def _check(path: Path) -> None:
    try:
        onnx.checker.check_model(str(path), full_check=True)  # by path: it reads weights beside the file, of any size
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported graph does not pass onnx.checker: {error}") from error
