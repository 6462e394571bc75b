"""Every graph that we export, through the real parser and builder of TensorRT for RTX, which need no GPU.

One build is for all GPUs that it knows but Turing (7.5): there it has no float32 products, which the head has in every
precision where it looks and scores. What is broken is refused, and our one line says why.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from rich.console import Console
from rich.progress import Progress

from sdst_calib.int8.quantise import find_products, quantise_model
from sdst_export.engine.build import build_engine
from sdst_export.engine.onnx_source import read_graph
from sdst_export.engine.options import EngineOptions
from sdst_export.engine.profiles import Bucket
from sdst_export.errors import EngineError
from sdst_export.graph import save_model
from sdst_export.models import export_head, export_projection, export_text, export_vision, lower
from sdst_runtime.contracts import FeatureSpec
from sdst_runtime.grounding.bundle import MODELS
from sdst_runtime.sessions.tensorrt.sidecar import Sidecar
from sdst_train.backbone.text import BERT_LARGE_STAGE2, TextEncoder
from sdst_train.backbone.towers import Backbone
from sdst_train.backbone.vision import INTERNVIDEO2_1B, VisionEncoder
from sdst_train.config import ModelConfig, TrainConfig
from sdst_train.loop.checkpoint import Checkpoint
from sdst_train.model.sdst import SDST

trt: Any = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX: pip install '.[rtx]' on Linux x86-64")

TURING, LATER = "7.5", ("8.0", "8.6", "8.9", "12.0")
USUAL, ONE_ROW = (Bucket(75, 32), Bucket(300, 8)), (Bucket(75, 1),)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("SDST_CACHE", str(tmp_path / "cache"))


def build(path: Path, out: Path, compute=LATER, buckets=USUAL) -> Sidecar:
    options = EngineOptions(target="rtx", compute=tuple(compute))
    return build_engine(path, out / f"{path.stem}.plan", buckets, options, None, Progress(console=Console(quiet=True)))


def refused(path: Path, out: Path, **options: Any) -> str:
    """The one line that says so; nothing is left behind."""
    with pytest.raises(EngineError) as error:
        build(path, out, **options)
    assert not list(out.glob("*.plan*"))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="session")
def int8_files(exported, tmp_path_factory) -> Path:
    """Q/DQ around every product of the random bundle; which scales they have does not matter here."""
    folder = tmp_path_factory.mktemp("int8")
    for name in MODELS:
        model = onnx.load(exported.directory / f"{name}.onnx")
        products = find_products(model)
        scales = dict.fromkeys((product.activation for product in products), 0.05)
        onnx.save(quantise_model(model, {product.layer for product in products}, scales).model, folder / f"{name}.onnx")
    return folder


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_model_in_every_precision(exported, exported_fp16, int8_files, tmp_path, caplog, precision, name):
    folder = {"fp32": exported.directory, "fp16": exported_fp16, "int8": int8_files}[precision]
    graph = read_graph(folder / f"{name}.onnx")
    sidecar = build(graph.path, tmp_path)
    assert (sidecar.inputs, sidecar.outputs) == (graph.inputs, graph.outputs)
    assert sidecar.compute == LATER
    assert len(sidecar.profiles) == (1 if name in ("vision", "text", "sentence") else len(USUAL))
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("name", MODELS)
def test_a_profile_of_one_row(exported, exported_fp16, tmp_path, name):
    """Sizes that cannot change are compiled in another way: a constant added right behind a product was refused."""
    for folder in (exported.directory, exported_fp16):
        sidecar = build(folder / f"{name}.onnx", tmp_path / folder.name, ("8.9",), ONE_ROW)
        assert [profile[next(iter(profile))].max[0] for profile in sidecar.profiles] == [16 if name == "vision" else 1]


def test_turing_has_no_float32_products(exported, exported_fp16, tmp_path):
    """The half towers and projection are built for it; the head looks and scores in float32."""
    for name in ("vision", "text", "projection"):  # the sentence's cosine is float32 too
        assert build(exported_fp16 / f"{name}.onnx", tmp_path / name, (TURING,)).compute == (TURING,)
    for folder in (exported.directory, exported_fp16):
        assert "FP32 GEMM is not supported" in refused(folder / "head.onnx", tmp_path, compute=(TURING,))


# ---------------------------------------------------------------- sizes as they are used


PAPER = FeatureSpec(
    "random", "0" * 64, 4, "adaptive", 4, 2.0, 224, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 768, "random", 40, 1024
)  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_papers_head(tmp_path, precision):
    """K 4, F 256, M 30: as many layers as docs/export.md says."""
    torch.manual_seed(0)
    config = ModelConfig()
    lowered = lower(Checkpoint(SDST(config).eval(), TrainConfig(model=config), PAPER, 0, {}), precision)
    for name, export in (("projection", export_projection), ("head", export_head)):
        save_model(export(lowered), tmp_path / f"{name}.onnx")
        sidecar = build(tmp_path / f"{name}.onnx", tmp_path, ("8.6", "8.9", "12.0"), (Bucket(75, 32),))
    assert sidecar.layers < (1000 if precision == "fp32" else 1150)


def test_towers_of_full_width(tmp_path):
    """InternVideo2-1B's and BERT-large's widths at two layers: every shape but the number of layers."""
    backbone = wide_backbone()
    for name, export in (("vision", export_vision), ("text", export_text)):
        save_model(export(backbone, "fp16"), tmp_path / f"{name}.onnx")
        sidecar = build(tmp_path / f"{name}.onnx", tmp_path)
        assert sidecar.plan_bytes > 2e7


def wide_backbone() -> Backbone:
    torch.manual_seed(0)
    vision = VisionEncoder(dataclasses.replace(INTERNVIDEO2_1B, depth=2, aligned_width=0))
    text = TextEncoder(dataclasses.replace(BERT_LARGE_STAGE2, depth=2, vocab_size=100))
    return Backbone.assemble(vision, text, dataclasses.replace(PAPER, layers=2), "")


# ---------------------------------------------------------------- what is broken


def changed(source: Path, target: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(source)
    change(model)
    onnx.save(model, target)
    return target


def node_of(model: onnx.ModelProto, kind: str, place: str = "") -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == kind and node.name.startswith(place))


def test_an_op_outside_its_types(exported, tmp_path):
    def round_to_integers(model: onnx.ModelProto) -> None:
        norm = node_of(model, "LayerNormalization", "dense.after_ffn")
        cast = onnx.helper.make_node("Cast", [norm.input[0]], ["whole"], "whole", to=TensorProto.INT32)
        norm.input[0] = "whole"
        model.graph.node.insert(list(model.graph.node).index(norm), cast)
        del model.graph.value_info[:]

    path = changed(exported.directory / "head.onnx", tmp_path / "head.onnx", round_to_integers)
    assert "dense.after_ffn" in refused(path, tmp_path)


def test_a_removed_cast_of_a_typed_graph(exported_fp16, tmp_path):
    """A product whose operands have two types: a network of the graph's own types converts none by itself."""

    def drop(model: onnx.ModelProto) -> None:
        types = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
        for cast in model.graph.node:
            readers = [n for n in model.graph.node if n.op_type == "MatMul" and n.input[0] == cast.output[0]]
            if cast.op_type == "Cast" and readers and types.get(cast.input[0]) == TensorProto.FLOAT16:
                readers[0].input[0] = cast.input[0]
                return
        raise AssertionError("no cast before a product")

    path = changed(exported_fp16 / "head.onnx", tmp_path / "head.onnx", drop)
    said = refused(path, tmp_path)
    assert "MatMul" in said or "type" in said.lower()


def test_quantising_in_a_wrong_place(int8_files, tmp_path):
    """Codes of a scale per row where one scale for all is meant: as many scales as no axis has."""

    def spread(model: onnx.ModelProto) -> None:
        scale = node_of(model, "QuantizeLinear").input[1]
        held = next(tensor for tensor in model.graph.initializer if tensor.name == scale)
        values = np.full(7, numpy_helper.to_array(held))
        held.CopyFrom(numpy_helper.from_array(values, scale))
        del model.graph.value_info[:]

    path = changed(int8_files / "head.onnx", tmp_path / "head.onnx", spread)
    assert "uantize" in refused(path, tmp_path)


def test_a_profile_outside_the_shapes(exported, tmp_path, monkeypatch):
    """Built for sizes that the graph's axes cannot have: more layers than it stores."""
    import sdst_export.engine.build as module

    wrong = module.profiles_for

    def profiles_of_five_layers(*arguments: Any) -> Any:
        profiles = wrong(*arguments)
        shapes = profiles[0]["projected"]
        sizes = {name: (*getattr(shapes, name)[:2], 5, shapes.max[3]) for name in ("min", "opt", "max")}
        return ({**profiles[0], "projected": dataclasses.replace(shapes, **sizes)},)

    monkeypatch.setattr(module, "profiles_for", profiles_of_five_layers)
    assert "profile" in refused(exported.directory / "head.onnx", tmp_path)
