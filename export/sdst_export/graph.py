"""From a torch module to a checked ONNX file: one path for the head and both towers."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from sdst_runtime.errors import SdstError
from sdst_runtime.files import write_bytes

from .rdsa_op import DOMAIN, NAME, OPSET, add_function


class ExportError(SdstError):
    """The exported graph is not what was asked for."""


def export_module(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    dynamic: Mapping[str, Mapping[int, str]],
    metadata: Mapping[str, str],
) -> onnx.ModelProto:
    """Trace `module(*inputs)` to ONNX, opset 20, all functions inlined except sdst::RDSA, which gets its body.

    `dynamic` names the free axes of each input; inputs without an entry are fixed. Raises ExportError when the
    checker refuses the result.
    """
    dims = {name: torch.export.Dim.DYNAMIC for axes in dynamic.values() for name in axes.values()}
    shapes = tuple({axis: dims[name] for axis, name in dynamic.get(i, {}).items()} for i in inputs)
    with torch.no_grad(), _quiet():
        program: Any = torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=shapes,
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            optimize=True,
        )
    model: onnx.ModelProto = program.model_proto
    for step, node in enumerate(rdsa_nodes(model), 1):
        node.name = f"{DOMAIN}::{NAME}.step{step}"  # what Polygraphy and TensorRT's inspector show
    if rdsa_nodes(model):
        add_function(model)
    _name_dynamic_axes(model, dynamic)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    model.producer_name = "sdst"
    _strip_trace_notes(model)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported graph does not pass onnx.checker: {error}") from error
    return model


def rdsa_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The sdst::RDSA nodes at the top level of the graph, in order."""
    return [node for node in model.graph.node if node.domain == DOMAIN and node.op_type == NAME]


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Write atomically. Raises InputError when `path` cannot be written."""
    write_bytes(path, model.SerializeToString())


def _name_dynamic_axes(model: onnx.ModelProto, dynamic: Mapping[str, Mapping[int, str]]) -> None:
    """Replace the tracer's names of free axes (s0, s77) by ours, everywhere they occur."""
    renamed = {}
    for value in model.graph.input:
        for axis, name in dynamic.get(value.name, {}).items():
            traced = value.type.tensor_type.shape.dim[axis]
            if not traced.dim_param:
                raise ExportError(
                    f"axis {axis} of {value.name} was to stay free, the tracer fixed it to {traced.dim_value}"
                )
            renamed[traced.dim_param] = name
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in renamed:
                dim.dim_param = renamed[dim.dim_param]


def _strip_trace_notes(model: onnx.ModelProto) -> None:
    """Drop the tracer's per-node notes: stack traces of this machine do not belong in a file that travels."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]


@contextlib.contextmanager
def _quiet():
    """torch.onnx reports each stage on stdout and in warnings; failures are raised all the same."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
