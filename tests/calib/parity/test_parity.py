"""Parity of real bundles: all levels together, and planted faults that are found."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import onnx
import pytest
from parity_world import World, changed_bundle, make_world, plant

from sdst_calib.audit.compare import EXACT_DB
from sdst_calib.parity.layers import compare_layers
from sdst_calib.parity.measure import Candidate, batches_of_one_length, inputs_of, measure_parity
from sdst_calib.parity.page import as_json, render_page
from sdst_calib.parity.task import CHECKED
from sdst_calib.parity.tolerances import DEFAULTS, Tolerances
from sdst_runtime.data.config import DataConfig
from sdst_runtime.errors import InputError
from sdst_runtime.grounding.bundle import Bundle
from sdst_runtime.sessions.base import GROUNDING_MODELS
from sdst_train.loop.checkpoint import load_checkpoint
from sdst_train.model.torch_session import TorchSession


@pytest.fixture(scope="module")
def world(exported, exported_fp16, tmp_path_factory) -> World:
    root = tmp_path_factory.mktemp("parity")
    return make_world(exported.checkpoint_path, exported.directory, exported_fp16, root)


def graphs(bundle: Path) -> dict[str, Path]:
    return {graph: bundle / f"{graph}.onnx" for graph in GROUNDING_MODELS}


# ---------------------------------------------------------------- all levels


def test_fp32_and_fp16_against_torch(world):
    checkpoint = load_checkpoint(world.checkpoint)
    samples, spec = world.samples(), checkpoint.spec
    data = DataConfig(**json.loads(world.config.read_text())["data"])
    with Bundle.open(world.fp32).grounding_model(1) as fp32, Bundle.open(world.fp16).grounding_model(1) as fp16:
        found = measure_parity(
            Candidate("torch", TorchSession(checkpoint.model), "torch", Tolerances()),
            [
                Candidate("fp32", fp32, "fp32", DEFAULTS["fp32"]),
                Candidate("fp16", fp16, "fp16", Tolerances(snr_db=120)),
            ],
            samples,
            data,
            spec,
        )
    full, half = found.candidates
    assert found.queries == 12
    assert list(full.tensors) == ["spans", "scores", "saliency"]
    assert max(error.max_abs for error in full.tensors.values()) < 1e-4
    assert 1e-5 < half.tensors["saliency"].max_abs < 1e-2
    assert full.passed
    failed = [check for check in half.checks if not check.passed]
    assert {(check.level, check.name) for check in failed} == {
        ("tensor", f"{name} snr_db") for name in ("spans", "scores", "saliency")
    }
    assert [m.name for m in full.metrics][:3] == ["MR-full-R1@0.5", "MR-full-R1@0.7", "MR-full-mAP"]
    page = render_page(found, {}, {"data": "<val>"})
    assert page.count("within tolerance") == 1
    assert "&lt;val&gt;" in page


def test_batches_hold_videos_of_one_length_and_every_query_once(world):
    samples = world.samples()
    batches = list(batches_of_one_length(samples, 4))
    assert sorted(place for batch in batches for place in batch) == list(range(12))
    assert [len(batch) for batch in batches] == [3, 4, 2, 3]
    assert all(len({len(samples[place].video) for place in batch}) == 1 for batch in batches)


def test_nan_is_beyond_every_tolerance(world, tmp_path):
    broken = changed_bundle(world.fp32, tmp_path / "nan", lambda graph: plant(graph, "classify", math.nan))
    spec = load_checkpoint(world.checkpoint).spec
    data = DataConfig(**json.loads(world.config.read_text())["data"])
    with Bundle.open(world.fp32).grounding_model(1) as good, Bundle.open(broken).grounding_model(1) as bad:
        of = Candidate("good", good, "fp32", Tolerances()), Candidate("bad", bad, "fp32", DEFAULTS["fp32"])
        found = measure_parity(of[0], [of[1]], world.samples(), data, spec)
    (copy,) = found.candidates
    assert not copy.passed
    assert (copy.decisions, copy.metrics) == (None, [])
    assert copy.tensors["scores"].not_finite > 0
    assert math.isnan(copy.tensors["scores"].max_abs)
    json.loads(json.dumps(as_json(found, {}, {}), allow_nan=False))


def test_metrics_are_of_the_queries_with_windows(world):
    samples, spec = world.samples(), load_checkpoint(world.checkpoint).spec
    data = DataConfig(**json.loads(world.config.read_text())["data"])
    bare = {key: value for key, value in samples[3].row.items() if key != "relevant_windows"}
    some = [*samples[:3], dataclasses.replace(samples[3], row=bare), *samples[4:]]
    with Bundle.open(world.fp32).grounding_model(1) as full, Bundle.open(world.fp16).grounding_model(1) as half:
        of = Candidate("full", full, "fp32", Tolerances()), Candidate("half", half, "fp16", Tolerances(points=100))
        found = measure_parity(of[0], [of[1]], some, data, spec)
        expected = measure_parity(of[0], [of[1]], [*samples[:3], *samples[4:]], data, spec)
    assert (found.queries, found.labelled) == (12, 11)
    assert found.reference_metrics == pytest.approx(expected.reference_metrics)
    assert "MR-full-mAP" in found.reference_metrics
    assert found.candidates[0].metrics == expected.candidates[0].metrics
    assert [check.name for check in found.candidates[0].checks if check.level == "task"] == list(CHECKED[data.metrics])
    assert "11 of 12 queries have windows" in render_page(found, {}, {})


# ---------------------------------------------------------------- layers


@pytest.mark.parametrize("place", ["project_text.2", "dense.cross.query", "sparse.sample.endpoints", "sparse.span.2"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_planted_node_is_named(world, tmp_path, place, precision):
    told = []
    source = {"fp32": world.fp32, "fp16": world.fp16}[precision]
    broken = changed_bundle(source, tmp_path / "broken", lambda graph: told.append(plant(graph, place, 1.5)))
    spec = load_checkpoint(world.checkpoint).spec
    batches = [inputs_of([sample], spec) for sample in world.samples()[:3]]
    report = compare_layers(graphs(world.fp32), graphs(broken), batches, 20)
    assert report.first is not None
    assert (report.first.node, report.first.tensor, report.first.graph) == (*told[0], "head")
    assert report.first.snr_db == pytest.approx(20 * math.log10(1 / 0.5), abs=0.1)


def test_a_fault_in_the_projection_is_named_there(world, tmp_path):
    told = []
    change = lambda graph: told.append(plant(graph, "project_video.2", 2.0))  # noqa: E731
    broken = changed_bundle(world.fp32, tmp_path / "broken", change, model="projection")
    batch = inputs_of(world.samples()[:1], load_checkpoint(world.checkpoint).spec)
    report = compare_layers(graphs(world.fp32), graphs(broken), [batch], 60)
    assert report.first is not None
    assert (report.first.node, report.first.tensor, report.first.graph) == (*told[0], "projection")


def test_every_float_tensor_but_casts_is_compared_and_none_diverges(world):
    batch = inputs_of(world.samples()[:1], load_checkpoint(world.checkpoint).spec)
    report = compare_layers(graphs(world.fp32), graphs(world.fp16), [batch], 20)
    assert report.first is None
    nodes = [node for node in onnx.load(world.fp32 / "head.onnx").graph.node if node.op_type in ("MatMul", "RDSA")]
    compared = [layer.operator for layer in report.layers if layer.graph == "head"]
    assert sum(operator in ("MatMul", "RDSA") for operator in compared) == len(nodes)
    same = compare_layers(graphs(world.fp32), graphs(world.fp32), [batch], EXACT_DB)
    assert {layer.snr_db for layer in same.layers} == {EXACT_DB}


def test_layers_of_what_is_no_onnx_graph_are_refused(world, tmp_path):
    plan = {**graphs(world.fp32), "head": tmp_path / "head.plan"}
    with pytest.raises(InputError, match="ONNX graphs"):
        compare_layers(graphs(world.fp32), plan, [{}], 20)
    (tmp_path / "head.onnx").write_bytes(b"no graph")
    queries = [inputs_of(world.samples()[:1], load_checkpoint(world.checkpoint).spec)]
    with pytest.raises(InputError, match="cannot read it as ONNX"):
        compare_layers(graphs(world.fp32), {**plan, "head": tmp_path / "head.onnx"}, queries, 20)
    with pytest.raises(InputError, match="got none"):
        compare_layers(graphs(world.fp32), graphs(world.fp16), [], 20)
