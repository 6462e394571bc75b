"""From a torch module to a checked ONNX file: one path for the head and both towers.

A graph stays in onnxscript's form until it is a file: a protobuf message with the weights inside ends at 2 GB.
"""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_graphsurgeon as gs
import torch
from onnx import helper
from onnxscript import ir
from torch import Tensor, nn

from sdst_runtime.contracts import KIND_KEY
from sdst_runtime.files import atomic_files, remove
from sdst_runtime.grounding.bundle import DATA_SUFFIX

from .attention import TRANSLATIONS
from .errors import ExportError
from .lowering.builder import GraphBuilder
from .rdsa_op import DOMAIN, OPSET, add_function

INLINE_LIMIT = 2_000_000_000  # bytes of weights; a protobuf message must stay below 2^31
TRACED_NODES = "sdst.traced_nodes"  # in an ir.Model's `meta`: how many nodes there were before cleaning
IR_VERSION = 10  # of ONNX 1.16, which TensorRT 10.3 reads
Type = tuple[int, Sequence[int | str]]  # of onnx.TensorProto, and the shape


def export_module(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    dynamic: Mapping[str, Mapping[int, str]],
    metadata: Mapping[str, str],
) -> ir.Model:
    """Trace `module(*inputs)` to ONNX, opset 20, all functions inlined.

    `dynamic` names the free axes of each input; inputs without an entry are fixed. Nodes are named by the module that
    they come from, `blocks.0.mlp.fc1/MatMul_94`. A graph of less than 2 GB of weights is cleaned.
    Raises ExportError when an axis that was to stay free was fixed by the tracer.
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
            custom_translation_table=TRANSLATIONS,
            dynamo=True,
            optimize=True,
        )
    model: ir.Model = program.model
    _name_nodes(model)
    _name_dynamic_axes(model, dynamic)
    _strip_trace_notes(model)
    model.metadata_props.update(metadata)
    model.producer_name = "sdst"
    traced = len(model.graph)
    if weight_bytes(model) <= INLINE_LIMIT:
        with _quiet():
            model = _clean(model)
    model.meta[TRACED_NODES] = traced
    return model


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
    graph = helper.make_graph(b.nodes, metadata[KIND_KEY], given, made, b.initializers, value_info=known)
    model = helper.make_model(graph, opset_imports=opsets, producer_name="sdst", ir_version=IR_VERSION)
    if rdsa_width:
        add_function(model, rdsa_width)
    helper.set_model_props(model, dict(metadata))
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    return ir.from_proto(model)


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


def _clean(model: ir.Model) -> ir.Model:
    """The same model without what the tracer left over; functions, names and metadata are as they were.

    onnx-graphsurgeon folds constants and drops dead nodes, a few per cent: torch.onnx has folded all but transposes of
    large weights. The weights must fit into one protobuf message, below 2 GB.
    """
    functions = dict(model.functions)
    model.functions.clear()  # folding rewrites a function's float constants as doubles, which no operator then accepts
    graph: Any = gs.import_onnx(ir.to_proto(model))
    graph.fold_constants().cleanup()
    cleaned = ir.from_proto(gs.export_onnx(graph))
    cleaned.functions.update(functions)
    cleaned.metadata_props.update(model.metadata_props)  # which graphsurgeon drops
    cleaned.producer_name = model.producer_name
    return cleaned


def _name_dynamic_axes(model: ir.Model, dynamic: Mapping[str, Mapping[int, str]]) -> None:
    """Replace the tracer's names of free axes (s0, s77) by ours, everywhere they occur."""
    renamed: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, name in dynamic.get(value.name or "", {}).items():
            traced = _shape(value)[axis]
            if not isinstance(traced, ir.SymbolicDim):
                raise ExportError(f"axis {axis} of {value.name} was to stay free, the tracer fixed it to {traced}")
            renamed[str(traced.value)] = name
    for value in _values(model):
        if value.shape is not None:
            value.shape = ir.Shape(
                re.sub(r"\w+", lambda word: renamed.get(word[0], word[0]), str(dim.value))
                if isinstance(dim, ir.SymbolicDim) and dim.value is not None
                else dim
                for dim in _shape(value)
            )


def _name_nodes(model: ir.Model) -> None:
    """Name nodes by their place among the modules, which the tracer notes; a wrapper's `model.` is left out."""
    for number, node in enumerate(model.graph):
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        modules = [scope for scope in scopes[:-1] if scope and not scope.startswith("_")]
        place = modules[-1].removeprefix("model.") if modules else ""
        node.name = f"{place}/{node.op_type}_{number}"


def _strip_trace_notes(model: ir.Model) -> None:
    """Drop the tracer's per-node notes: stack traces of this machine do not belong in a file that travels."""
    for noted in (model.graph, *model.graph, *_values(model), *model.graph.initializers.values()):
        noted.metadata_props.clear()
        noted.doc_string = None


_SCOPES = "pkg.torch.onnx.name_scopes"


def _values(model: ir.Model) -> list[ir.Value]:
    return [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]


def _shape(value: ir.Value) -> tuple[int | ir.SymbolicDim, ...]:
    return () if value.shape is None else value.shape.dims


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
