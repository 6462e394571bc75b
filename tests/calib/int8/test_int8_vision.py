"""int8 for the vision model: calibrated on clips of videos, its Conv too, and weights that lie beside the graph."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from int8_world import make_world, silent
from onnx import TensorProto, numpy_helper
from onnxscript import ir

from sdst.cli import main
from sdst_calib.int8.calibrate import Int8Options, Int8Report, Queries, calibrate_int8
from sdst_export.graph import save_model
from sdst_runtime.grounding.bundle import Bundle, write_manifest
from sdst_runtime.media.clips import read_clips
from sdst_runtime.sessions.open import open_session

OPTIONS = Int8Options("amax", ("vision",))


@pytest.fixture(scope="module")
def world(exported, video, tmp_path_factory):
    made = make_world(exported, tmp_path_factory.mktemp("vision"))
    videos = {sample.row["vid"]: video for sample in made.queries.calibration}
    return dataclasses.replace(made, queries=dataclasses.replace(made.queries, videos=videos))


@pytest.fixture(scope="module")
def int8(world, tmp_path_factory) -> tuple[Path, Int8Report]:
    out = tmp_path_factory.mktemp("vision") / "int8"
    return out, calibrate_int8(world.bundle, out, world.queries, OPTIONS, silent, 1)


def test_every_product_with_a_weight_computes_in_int8(int8, exported):
    out, report = int8
    graph = onnx.load(out / "vision.onnx").graph
    made = {name: node for node in graph.node for name in node.output}
    held = {tensor.name: tensor for tensor in graph.initializer}
    found = {"Conv": 0, "MatMul": 0}
    for node in graph.node:
        if node.op_type in found and node.input[1] in made and made[node.input[1]].op_type == "DequantizeLinear":
            weight = made[node.input[1]]
            assert held[weight.input[0]].data_type == TensorProto.INT8
            assert made[node.input[0]].op_type == "DequantizeLinear"
            (axis,) = (attribute.i for attribute in weight.attribute if attribute.name == "axis")
            channels = numpy_helper.to_array(held[weight.input[0]]).shape[axis]
            assert axis == (0 if node.op_type == "Conv" else 1)
            assert held[weight.input[1]].dims == [channels]
            found[node.op_type] += 1
    original = onnx.load(exported.directory / "vision.onnx").graph
    weights = {tensor.name for tensor in original.initializer}
    products = [node for node in original.node if node.op_type in found and node.input[1] in weights]
    assert found == {"Conv": 1, "MatMul": len(products) - 1}
    assert found["MatMul"] > 12
    assert set(report.models["vision"].layers) == {node.name.rpartition("/")[0] for node in products}
    assert report.models.keys() == {"vision"}


def test_features_are_near_and_the_report_says_how_near(int8, world, video):
    out, report = int8
    written = Bundle.open(out)
    clips, _ = read_clips(video, written.manifest.spec)
    with written.session("vision", 1) as quantised, world.bundle.session("vision", 1) as exact:
        got, expected = (session.run({"clips": clips})["features"] for session in (quantised, exact))
    snr_db = 10 * np.log10(np.square(expected).sum() / np.square(got - expected).sum())
    assert report.vision_snr_db is not None
    assert 15 < snr_db < 60
    assert report.vision_snr_db == pytest.approx(snr_db, abs=3)  # of one clip a query, here of all
    assert report.int8 == report.reference
    for name in ("head", "text", "projection"):
        assert written.path(name).read_bytes() == world.bundle.path(name).read_bytes()


def test_weights_beside_the_graph_give_the_same_model(int8, world, tmp_path):
    out, _ = int8
    apart = tmp_path / "apart"
    apart.mkdir()
    for path in world.bundle.directory.iterdir():
        (apart / path.name).write_bytes(path.read_bytes())
    save_model(ir.load(world.bundle.path("vision")), apart / "vision.onnx", inline_limit=0)
    assert (apart / "vision.onnx.data").stat().st_size > 50_000
    manifest = world.bundle.manifest
    bundle = write_manifest(apart, manifest.spec, manifest.models, manifest.sdst_version)
    calibrate_int8(bundle, tmp_path / "int8", world.queries, OPTIONS, silent, 1)
    clips = np.random.default_rng(0).integers(0, 255, (2, 2, 28, 28, 3), np.uint8)
    with (
        open_session(out / "vision.onnx", 1) as inline,
        Bundle.open(tmp_path / "int8").session("vision", 1) as beside,
    ):
        np.testing.assert_array_equal(*(s.run({"clips": clips})["features"] for s in (inline, beside)))


def test_vision_without_videos_and_a_budget_for_it_alone(world, tmp_path, capsys):
    command = ["calibrate", "int8", str(world.bundle.directory), "--data", str(world.config), "--models", "vision"]
    assert main([*command, "--out", str(tmp_path / "int8")]) == 2
    assert capsys.readouterr().err.endswith("got vision; vision takes frames: name the --videos\n")
    queries: Queries = world.queries
    report = calibrate_int8(
        world.bundle, tmp_path / "int8", queries, dataclasses.replace(OPTIONS, budget=0.0), silent, 1
    )
    assert report.sensitivity == []  # vision is not measured by points
    assert len(report.models["vision"].layers) > 10
