"""ONNX files for the engine builder under the mock: two chained sdst::RDSA nodes, and the text of their engine.

The moments are fixed, as in a trained head. Shape letters: B batch, T clips, M moments, F width, H heads, P points.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import onnx
from engine_files import INPUTS, OUTPUTS, SPEC, E, F, H, P, plan_bytes
from onnx import TensorProto, helper

from sdst_runtime.sessions.tensorrt.sidecar import TensorRecord

M = 5


def head_model(text: bytes | None = None, nodes: int = 2, dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """Two chained sdst::RDSA nodes with a function of the same name, and the text of an engine for the mock."""
    kinds = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32}

    def value(name: str, record: TensorRecord) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kinds[record.dtype], [M if n == "M" else n for n in record.shape])

    reads = [["value", "endpoints", "reference", "length"], ["hidden_0", "endpoints_2", "reference", "length_2"]]
    writes = ["hidden_0", "out"] if nodes == 2 else ["out"]
    attributes = {"num_heads": H, "num_points": P, "plugin_version": "1", "plugin_namespace": "sdst"}
    made = [
        helper.make_node("RDSA", read, [write], name=f"sdst::RDSA.step{step}", domain="sdst", **attributes)
        for step, (read, write) in enumerate(zip(reads, writes), 1)
    ]
    hidden = helper.make_tensor_value_info("hidden_0", dtype, ["B", M, F])
    inputs = [value(name, record) for name, record in INPUTS.items()]
    graph = helper.make_graph(made, "head", inputs, [value("out", OUTPUTS["out"])], value_info=[hidden])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("sdst", 1)]
    body = [helper.make_node("Identity", ["value"], ["out"])]
    function = helper.make_function("sdst", "RDSA", reads[0], ["out"], body, opsets[:1], list(attributes))
    model = helper.make_model(graph, opset_imports=opsets, functions=[function])
    told = {"sdst.kind": "head", "sdst.spec": SPEC.to_json(), "sdst.precision": "fp32", "sdst.steps": "2"}
    told |= {"sdst.usual_clips": "40", "sdst.longest_clips": "60"}
    helper.set_model_props(model, told | ({"sdst.mock": text.decode()} if text else {}))
    return model


def mock_text() -> bytes:
    """The engine of engine_files.py with M moments always: the mock's `reference:1` is then a fixed size."""
    lines = plan_bytes().decode().splitlines()[:-1]
    kept = [line for line in lines if not line.startswith(("profile", "shape "))]
    fixed = {
        "tensor reference": f"tensor reference input float -1 {M} 2",
        "tensor endpoints_2": f"tensor endpoints_2 input float -1 {M} {E}",
    }
    lines = [next((new for old, new in fixed.items() if line.startswith(f"{old} ")), line) for line in kept]
    sizes = {"value": "1 {T} 32", "endpoints": "1 {T} 48", "length": "1", "length_2": "1"}
    sizes |= {"reference": f"1 {M} 2", "endpoints_2": f"1 {M} {E}"}
    lines.append("profile")
    lines += [f"shape {name} {' | '.join([shape.format(T=1)] * 3)}" for name, shape in sizes.items()]
    text = "\n".join(lines) + "\n"
    return f"{text}adler32 {zlib.adler32(text.encode()):08x}\n".encode()


def write_head(path: Path, **changes: Any) -> Path:
    onnx.save(head_model(**changes), str(path))
    return path
