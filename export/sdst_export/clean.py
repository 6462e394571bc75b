"""What the tracer left over, removed with onnx-graphsurgeon: constants are folded, dead nodes go.

On these graphs that is little, a few per cent of the nodes: torch.onnx has folded already, but for transposes of
weights that are large.
"""

from __future__ import annotations

from typing import Any

import onnx_graphsurgeon as gs
from onnxscript import ir


def clean(model: ir.Model) -> ir.Model:
    """The same model with fewer nodes; functions, names and metadata are as they were.

    Its weights must fit into one protobuf message, below 2 GB.
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
