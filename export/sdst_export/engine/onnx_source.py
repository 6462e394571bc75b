"""What the engine builder reads of an ONNX file, and the form in which TensorRT's parser gets it.

The function that computes sdst::RDSA elsewhere is left out for TensorRT: of a node with both a function and a plugin
some versions build the function and say nothing. No torch here: engines are built on the device that runs them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import onnx
import onnx.inliner
from google.protobuf.message import DecodeError

from sdst_runtime.contracts import FP32, KIND_KEY, PRECISION_KEY, SPEC_KEY, STEPS_KEY, FeatureSpec
from sdst_runtime.errors import ContractError, InputError
from sdst_runtime.files import sha256_file
from sdst_runtime.grounding.bundle import DATA_SUFFIX
from sdst_runtime.sessions.base import MODELS, ModelKind
from sdst_runtime.sessions.tensorrt.compat import PLUGIN
from sdst_runtime.sessions.tensorrt.sidecar import TensorRecord

from .parser_form import nodes_once, parser_form

PAIR = ("QuantizeLinear", "DequantizeLinear")
TRAINED = ("usual_clips", "longest_clips")


@dataclass(frozen=True)
class EngineGraph:
    """An ONNX file of a bundle."""

    path: Path
    kind: ModelKind
    precision: str
    spec: FeatureSpec
    steps: int  # as the exporter says, 0 in all but the head
    trained: dict[str, int]  # what the exporter says of the training videos: usual_clips, longest_clips; or nothing
    rdsa: int  # sdst::RDSA nodes
    inputs: dict[str, TensorRecord]
    outputs: dict[str, TensorRecord]
    half_share: float  # of the nodes that compute floating numbers
    sha256: str
    weights_sha256: str | None


def read_graph(path: Path) -> EngineGraph:
    """Raises InputError when the file cannot be read, ContractError when it is none of this project's models."""
    model = _load(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    kind, spec = metadata.get(KIND_KEY), metadata.get(SPEC_KEY)
    if kind not in MODELS or spec is None:
        raise ContractError(f"{path}: expected a model with {KIND_KEY} and {SPEC_KEY} in it; export the bundle again")
    op, _, domain = PLUGIN
    weights = path.with_name(path.name + DATA_SUFFIX)
    return EngineGraph(
        path=path,
        kind=cast(ModelKind, kind),
        precision=metadata.get(PRECISION_KEY, FP32),
        spec=FeatureSpec.from_json(spec, path),
        steps=int(metadata.get(STEPS_KEY, 0)),
        trained={name: int(metadata[f"sdst.{name}"]) for name in TRAINED if f"sdst.{name}" in metadata},
        rdsa=sum((node.op_type, node.domain) == (op, domain) for node in model.graph.node),
        inputs=_records(model.graph.input),
        outputs=_records(model.graph.output),
        half_share=half_share(model),
        sha256=sha256_file(path),
        weights_sha256=sha256_file(weights) if weights.is_file() else None,
    )


def model_for_parser(path: Path) -> bytes:
    """The model for TensorRT's parser; weights in a file of their own stay there. Raises InputError as `read_graph`.

    An activation of an int8 model, which has a pair of Q/DQ for each product, for ONNX Runtime, gets one pair again.
    Read anew, so that nobody holds the model while TensorRT builds.
    """
    model = _load(path)
    del model.functions[:]
    weights = {tensor.name for tensor in model.graph.initializer}
    nodes_once(model.graph, lambda node: node.op_type in PAIR and node.input[0] not in weights)
    _read_after_cast(model.graph)
    return model.SerializeToString()


def model_for_rtx(path: Path) -> bytes:
    """`model_for_parser` for TensorRT for RTX: functions are expanded, for it takes no plugin."""
    model = parser_form(_load(path))
    _read_after_cast(model.graph)
    return model.SerializeToString()


def half_share(model: onnx.ModelProto) -> float:
    """Share of float16 among the nodes with a float16 or float32 output, 0 when there are none.

    Casts are left out, and dequantising, which becomes part of the product that follows.
    """
    inferred = onnx.shape_inference.infer_shapes(model)
    values = (*inferred.graph.value_info, *inferred.graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    outputs = [types.get(node.output[0]) for node in inferred.graph.node if node.op_type not in _NO_LAYERS]
    half, single = outputs.count(onnx.TensorProto.FLOAT16), outputs.count(onnx.TensorProto.FLOAT)
    return half / (half + single) if half + single else 0.0


def expanded_half_share(path: Path) -> float:
    """`half_share` with every function's body in the place of its nodes, as TensorRT for RTX gets it."""
    return half_share(onnx.inliner.inline_local_functions(_load(path)))


def function_ops(path: Path) -> set[str]:
    """Names of the ops that are functions in the file."""
    return {function.name for function in _load(path).functions}


_NO_LAYERS = ("Cast", "CastLike", "DequantizeLinear")


def _load(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(str(path), load_external_data=False)
    except (OSError, DecodeError) as error:
        raise InputError(f"cannot read {path} as ONNX ({error}); export the bundle again") from error


def _read_after_cast(graph: onnx.GraphProto) -> None:
    """Let only casts read inputs of uint8; the others, as Shape, read what the cast gives.

    TensorRT takes uint8 as an input and nowhere else: onnx-tensorrt, docs/operators.md.
    """
    small = {value.name for value in graph.input if value.type.tensor_type.elem_type == onnx.TensorProto.UINT8}
    casts = [node for node in graph.node if node.op_type == "Cast" and node.input[0] in small]
    cast_outputs = {node.input[0]: node.output[0] for node in reversed(casts)}
    for node in graph.node:
        if node not in casts:
            node.input[:] = [cast_outputs.get(name, name) for name in node.input]
    others = [node for node in graph.node if node not in casts]
    ordered = [onnx.NodeProto.FromString(node.SerializeToString()) for node in (*casts, *others)]
    del graph.node[:]
    graph.node.extend(ordered)


def _records(values: Iterable[onnx.ValueInfoProto]) -> dict[str, TensorRecord]:
    records = {}
    for value in values:
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        records[value.name] = TensorRecord(dtype, tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim))
    return records
