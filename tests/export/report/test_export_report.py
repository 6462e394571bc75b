"""The written graphs and the export report: what is counted, the casts of a small bundle one by one."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from export_reports import read_report
from onnxscript import ir
from torch import nn

from sdst_export.errors import ExportError
from sdst_export.graph import save_model, write_graph
from sdst_export.lowering.builder import FLOAT, GraphBuilder, Tensor
from sdst_export.report.summary import summarise
from sdst_runtime.grounding.bundle import MODELS, Bundle
from sdst_runtime.sessions.open import open_session
from sdst_train.loop.checkpoint import load_checkpoint


def line() -> ir.Model:
    """x B T 200 to (x W^T + b) * 2, B T 300."""
    torch.manual_seed(0)
    module, b = nn.Linear(200, 300), GraphBuilder()
    with b.at("line"):
        weight = b.weight("line.weight", module.weight, change=lambda w: w.T)
        y = b.add(b.op("MatMul", Tensor("x", FLOAT), weight), b.weight("line.bias", module.bias))
    b.name(b.op("Mul", y, b.constant(2.0)), "y")
    inputs, outputs = {"x": (FLOAT, ["B", "T", 200])}, {"y": (FLOAT, ["B", "T", 300])}
    return write_graph(b, inputs, outputs, {"sdst.kind": "line"})


@pytest.fixture(scope="module")
def half_bundle(exported_fp16) -> Bundle:
    return Bundle.open(exported_fp16)


def test_a_written_graph_and_its_weights(tmp_path):
    save_model(line(), tmp_path / "line.onnx")
    graph = onnx.load(tmp_path / "line.onnx").graph
    assert [node.op_type for node in graph.node] == ["MatMul", "Add", "Mul"]
    assert [node.name.split("/")[0] for node in graph.node] == ["line", "line", ""]
    assert [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == ["B", "T", 200]
    assert len(graph.input) == 1
    torch.manual_seed(0)
    module, x = nn.Linear(200, 300), np.random.default_rng(0).standard_normal((3, 4, 200)).astype(np.float32)
    with open_session(tmp_path / "line.onnx", 1) as session, torch.no_grad():
        assert session.metadata["sdst.kind"] == "line"
        assert np.abs(session.run({"x": x})["y"] - 2 * module(torch.from_numpy(x)).numpy()).max() < 1e-5


def test_costs_on_paper():
    """B T 200 -> 300 at B 2, T 5: a product, a sum and a factor."""
    model = line()
    summary = summarise(model, {"B": 2, "T": 5, "L": 9})
    cost = summary.stages["line"]
    assert cost.flops == 2 * 10 * 200 * 300 + 2 * 10 * 300
    assert cost.activation_bytes == 4 * 10 * (200 + 5 * 300)  # read x; write, read, write, read, write 300
    assert cost.weight_bytes == 4 * (200 * 300 + 300 + 1)
    assert summary.sizes == {"B": 2, "T": 5}
    with pytest.raises(ExportError, match=r"axis 'T': expected a product of B, got 'T'"):
        summarise(model, {"B": 2})


def test_rdsa_and_its_body(exported, half_bundle):
    for directory in (exported.directory, half_bundle.directory):
        head = onnx.load(directory / "head.onnx")
        body = head.functions[0]
        assert [node.name for node in head.graph.node if node.domain == "sdst"] == [
            "sdst::RDSA.step1",
            "sdst::RDSA.step2",
        ]
        floats = [a.t.data_type for node in body.node for a in node.attribute if a.type == onnx.AttributeProto.TENSOR]
        assert onnx.TensorProto.DOUBLE not in floats
        onnx.checker.check_model(head, full_check=True)


def test_report_agrees_with_the_files(half_bundle, exported):
    report = read_report(half_bundle.directory)
    assert report.precision == "fp16"
    assert report.moments == 5
    assert list(report.models) == list(MODELS)
    trained = sum(p.numel() for p in load_checkpoint(exported.checkpoint_path).model.parameters())
    assert report.parameters["head"] == trained
    for name, model in report.models.items():
        graph = onnx.load(half_bundle.path(name)).graph
        assert model.nodes == len(graph.node)
        assert model.operators.get("Cast", 0) == sum(node.op_type == "Cast" for node in graph.node)
        halves = [int(np.prod(t.dims)) for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT16]
        assert model.weights["float16"] == sum(halves)
        assert sum(stage.nodes for stage in model.stages.values()) == model.nodes
    head = report.models["head"]
    assert head.functions == ["sdst::RDSA"]
    assert set(head.stages) == {
        "text projection", "dense stream", "sparse stream", "RDSA", "heads", "masks, places, saliency",
    }  # fmt: skip
    assert head.half_weights > 0.8
    assert head.half_activations > 0.6


def test_products_of_a_stage_on_paper(half_bundle):
    """F 32, 2 steps, B 1, T 75: value, endpoints (48 channels), out of RDSA and the depth-wise context."""
    report = read_report(half_bundle.directory)
    F, T, M, K, HP, P = 32, 75, 5, 2, 8, 2
    products = 2 * T * F * F + 2 * T * F * 6 * HP + 2 * M * F * F + 2 * T * F * 3
    biases = T * F + T * 6 * HP + M * F
    kernel = M * (24 * HP + 11 * HP + 4 * P * F)
    rdsa = report.models["head"].stages["RDSA"].flops
    masked = rdsa - K * (products + biases + kernel)
    assert 0 <= masked <= K * (T * F + 2 * T)  # zeroing the padding


CASTS = {  # of the small fp16 bundle, between floating types
    "vision": {"float to float16": 20, "float16 to float": 18},
    "text": {"float to float16": 9, "float16 to float": 11},
    "projection": {"float to float16": 2, "float16 to float": 1},
    "head": {"float to float16": 27, "float16 to float": 33},
    "sentence": {"float to float16": 3, "float16 to float": 3},
}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_cast_is_counted(exported, half_bundle, precision):
    """A change that lets a type slip moves a number of the table."""
    report = read_report(half_bundle.directory if precision == "fp16" else exported.directory)
    for name, model in report.models.items():
        counts = {types: sum(places.values()) for types, places in model.casts.items()}
        assert sum(counts.values()) == model.operators.get("Cast", 0)
        floats = {types: n for types, n in counts.items() if set(types.split(" to ")) <= {"float", "float16"}}
        assert floats == (CASTS[name] if precision == "fp16" else {}), name
        if precision == "fp32":
            assert model.half_weights == model.half_activations == 0


def test_a_stray_cast_is_seen(half_bundle):
    model = ir.load(half_bundle.path("head"))
    relu = next(node for node in model.graph if node.op_type == "Relu" and "ffn" in (node.name or ""))
    relu.op_type = "Cast"
    relu.attributes["to"] = ir.AttrInt64("to", ir.DataType.BFLOAT16)
    relu.outputs[0].dtype = ir.DataType.BFLOAT16
    casts = summarise(model, {"B": 1, "T": 75, "L": 20}).casts
    assert casts["float16 to bfloat16"] == {"dense.ffn.1": 1}


def test_the_report_is_part_of_the_bundle(half_bundle):
    assert "export.json" in json.loads((half_bundle.directory / "bundle.json").read_text())["files"]
    assert Bundle.open(half_bundle.directory).manifest == half_bundle.manifest
