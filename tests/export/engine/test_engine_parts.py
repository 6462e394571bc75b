"""The parts of the engine builder: profiles, what is read of ONNX files, the check of the layers, the cache, Ctrl-C.

Shape letters: B batch, T clips, L tokens, N clips of a vision batch.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import onnx
import pytest
from engine_files import SPEC, F, plan_bytes, sidecar
from engine_models import M, head_model, write_head
from onnx import TensorProto, helper

from sdst.cli import main
from sdst_export.engine.cache import engine_key, timing_cache_path
from sdst_export.engine.inspect_plan import Layers, read_layers, require_layers
from sdst_export.engine.monitor import interruptible
from sdst_export.engine.onnx_source import half_share, model_for_parser, read_graph
from sdst_export.engine.profiles import Bucket, default_buckets, limits, parse_buckets, profiles_for
from sdst_export.errors import EngineError
from sdst_runtime.errors import ContractError, InputError
from sdst_runtime.grounding.bundle import MODELS, write_manifest
from sdst_runtime.grounding.grounder import CLIP_PAIRS, MOST_ROWS
from sdst_runtime.sessions.tensorrt.sidecar import PluginRecord, ShapeRange, TensorRecord

BUCKETS = (Bucket(8, 2), Bucket(24, 4))
HEAD = {
    "projected": TensorRecord("float16", ("B", "T", 2, 8)),
    "video_mask": TensorRecord("bool", ("B", "T")),
    "text": TensorRecord("float32", ("B", 2, "L", 8)),
    "text_mask": TensorRecord("bool", ("B", "L")),
}


# ---------------------------------------------------------------- profiles


def test_default_buckets_take_what_the_grounder_gives():
    assert default_buckets() == (Bucket(75, 32), Bucket(150, 32), Bucket(300, 32), Bucket(600, 32), Bucket(1200, 8))
    assert limits(default_buckets()) == {"max_clips": 1200, "max_batch": 32}


@pytest.mark.parametrize("clips", [1, 75, 76, 306, 307, 600, 601, 1200])
def test_every_batch_of_the_grounder_fits_a_bucket(clips):
    rows = max(1, min(MOST_ROWS, CLIP_PAIRS // clips**2))
    assert any(clips <= bucket.clips and rows <= bucket.rows for bucket in default_buckets())


def test_fewer_rows_in_a_bucket_limit_the_batch():
    assert limits((Bucket(75, 4), Bucket(150, 32))) == {"max_clips": 150, "max_batch": 4}
    assert limits((Bucket(75, 32), Bucket(1200, 8))) == {"max_clips": 1200, "max_batch": 8}
    assert limits((Bucket(600, 32), Bucket(1200, 8))) == {"max_clips": 1200, "max_batch": 32}


def test_buckets_from_the_command_line():
    assert parse_buckets(["150x8", "75"]) == (Bucket(75, 32), Bucket(150, 8))
    assert parse_buckets(["1200"]) == (Bucket(1200, 32),)


@pytest.mark.parametrize("texts", [["75x"], ["0"], ["x8"], ["75x0"], ["a"], ["75", "75x8"], []])
def test_bad_buckets_are_refused(texts):
    with pytest.raises(InputError, match="profiles: expected"):
        parse_buckets(texts)


def test_profiles_of_the_head_are_one_row_and_many_for_each_bucket():
    profiles = profiles_for("head", HEAD, SPEC, (Bucket(75, 32), Bucket(150, 1)))
    assert [profile["projected"] for profile in profiles] == [
        ShapeRange((1, 1, 2, 8), (1, 75, 2, 8), (1, 75, 2, 8)),
        ShapeRange((1, 1, 2, 8), (32, 75, 2, 8), (32, 75, 2, 8)),
        ShapeRange((1, 1, 2, 8), (1, 150, 2, 8), (1, 150, 2, 8)),
    ]
    assert profiles[1]["text"] == ShapeRange((1, 2, 1, 8), (32, 2, 12, 8), (32, 2, 12, 8))
    assert profiles[1]["text_mask"] == ShapeRange((1, 1), (32, 12), (32, 12))


def test_profiles_of_the_towers():
    clips = {"clips": TensorRecord("uint8", ("N", 2, 16, 16, 3))}
    tokens = {"token_ids": TensorRecord("int64", ("B", "L"))}
    (vision,) = profiles_for("vision", clips, SPEC, BUCKETS)
    assert vision["clips"] == ShapeRange((1, 2, 16, 16, 3), (16, 2, 16, 16, 3), (16, 2, 16, 16, 3))
    assert [profile["token_ids"].max for profile in profiles_for("text", tokens, SPEC, BUCKETS)] == [(1, 12), (2, 12)]


def test_an_axis_of_another_name_is_refused():
    with pytest.raises(InputError, match="free axes named B, T, L, got s0"):
        profiles_for("head", {"text": TensorRecord("float32", ("s0", 8))}, SPEC, BUCKETS)


# ---------------------------------------------------------------- ONNX files


def test_what_is_read_of_an_onnx_file(tmp_path):
    graph = read_graph(write_head(tmp_path / "head.onnx"))
    assert (graph.kind, graph.precision, graph.steps, graph.rdsa) == ("head", "fp32", 2, 2)
    assert graph.spec == SPEC
    assert graph.inputs["value"] == TensorRecord("float32", ("B", "T", F))
    assert graph.inputs["reference"] == TensorRecord("float32", ("B", M, 2))
    assert graph.outputs == {"out": TensorRecord("float32", ("B", M, F))}
    assert graph.weights_sha256 is None
    assert graph.trained == {"usual_clips": 40, "longest_clips": 60}
    stripped = onnx.load_from_string(model_for_parser(graph.path))
    assert len(stripped.functions) == 0
    assert [node.op_type for node in stripped.graph.node] == ["RDSA", "RDSA"]


def test_only_casts_read_uint8(tmp_path):
    """The shape of the clips is asked before they are cast, as torch writes it."""
    nodes = [
        helper.make_node("Shape", ["clips"], ["clips_shape"]),
        helper.make_node("Cast", ["clips"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["values", "clips_shape"], ["features"]),
    ]
    inputs = [helper.make_tensor_value_info("clips", TensorProto.UINT8, ["N", 3])]
    outputs = [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 3])]
    graph = helper.make_graph(nodes, "vision", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    helper.set_model_props(model, {"sdst.kind": "vision", "sdst.spec": SPEC.to_json()})
    onnx.save(model, str(tmp_path / "vision.onnx"))
    stripped = onnx.load_from_string(model_for_parser(tmp_path / "vision.onnx"))
    onnx.checker.check_model(stripped, full_check=True)
    assert [(node.op_type, *node.input) for node in stripped.graph.node] == [
        ("Cast", "clips"), ("Shape", "values"), ("Reshape", "values", "clips_shape"),
    ]  # fmt: skip


def test_weights_beside_the_file_are_digested(tmp_path):
    path = write_head(tmp_path / "head.onnx")
    (tmp_path / "head.onnx.data").write_bytes(b"weights")
    digest = read_graph(path).weights_sha256
    (tmp_path / "head.onnx.data").write_bytes(b"other weights")
    assert digest is not None
    assert read_graph(path).weights_sha256 not in (None, digest)


@pytest.mark.parametrize("damage", ["missing", "cut short", "another"])
def test_bad_onnx_files_are_refused(tmp_path, damage):
    path = tmp_path / "head.onnx"
    if damage == "cut short":
        path.write_bytes(head_model().SerializeToString()[:-20])
    if damage == "another":
        model = head_model()
        helper.set_model_props(model, {"sdst.kind": "tail"})
        onnx.save(model, str(path))
    with pytest.raises(ContractError if damage == "another" else InputError, match=r"head\.onnx.*export the bundle"):
        read_graph(path)


def test_half_share_counts_what_computes():
    assert half_share(head_model()) == 0
    assert half_share(head_model(dtype=TensorProto.FLOAT16)) == 0.5


# ---------------------------------------------------------------- the engine's layers


def inspected(*layers: dict[str, Any]) -> str:
    return json.dumps({"Layers": layers, "Bindings": []})


def layer(kind: str, dtype: str, **more: Any) -> dict[str, Any]:
    tensors = [{"Name": "x", "Dimensions": [1, 2], "Format/Datatype": dtype}]
    return {"Name": "a layer", "LayerType": kind, "Inputs": tensors, "Outputs": tensors, **more}


@pytest.mark.parametrize("kind", ["PLUGIN_V3", "PluginV3"])
@pytest.mark.parametrize("half", ["Half", "Row major linear FP16 format", "FP16"])
def test_layers_are_counted_in_each_spelling(kind, half):
    plugin = layer(kind, half, PluginType="RDSA")
    layers = read_layers(
        inspected(plugin, layer("gemm", half), layer("kgen", "Float"), layer("shape", "Int32"), plugin)
    )
    assert layers == Layers(all=5, rdsa={0: 2}, floating=4, half=3)


def test_a_plugin_of_another_name_and_a_node_of_the_name_do_not_count():
    other = layer("PLUGIN_V3", "Float", PluginType="Other")
    node = {**layer("kgen", "Float"), "Name": "sdst::RDSA.step1"}
    assert read_layers(inspected(other, node)).rdsa == {0: 0}


def test_layers_of_each_profile_count_apart():
    plugin = layer("PLUGIN_V3", "Half", PluginType="RDSA")
    second = {**plugin, "Name": "sdst::RDSA.step1 [profile 1]"}
    layers = read_layers(inspected(plugin, plugin, second, layer("kgen", "Half")))
    assert layers.rdsa == {0: 2, 1: 1}
    with pytest.raises(EngineError, match=r"expected 2 layers .* profile 1 of the engine has 1 among 4"):
        require_layers("head.onnx", layers, rdsa=2, half_share=1.0)
    require_layers("head.onnx", read_layers(inspected(plugin, second)), rdsa=1, half_share=1.0)
    assert read_layers(inspected(second)).rdsa == {0: 0, 1: 1}


@pytest.mark.parametrize(
    "fused", [{"Name": "{ForeignNode[a...b]}"}, {"LayerType": "Myelin"}, {"Name": "__myln_k_bb0_1"}]
)
def test_a_low_share_of_half_is_a_warning_where_regions_are_fused(caplog, fused):
    layers = read_layers(inspected({**layer("kgen", "Float"), **fused}, layer("gemm", "Float")))
    assert layers.fused == 1
    require_layers("vision.onnx", layers, rdsa=0, half_share=0.8)
    assert "the graph is 80% half, the engine 0% (0 of 2 layers), 1 of them fused" in caplog.text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"Layers": ["only a name"]}'])
def test_an_inspector_without_details_is_refused(text):
    with pytest.raises(EngineError, match="TensorRT's inspector"):
        read_layers(text)


def test_missing_plugin_layers_and_missing_halves_fail_the_build():
    require_layers("head.onnx", Layers(all=9, rdsa={0: 4}, floating=8, half=6), rdsa=4, half_share=0.8)
    require_layers("vision.onnx", Layers(all=1, rdsa={0: 0}, floating=0, half=0), rdsa=0, half_share=0.9)
    with pytest.raises(EngineError, match=r"head\.onnx: expected 4 layers of the plugin sdst::RDSA.*has 0 among 9"):
        require_layers("head.onnx", Layers(all=9, rdsa={0: 0}, floating=8, half=6), rdsa=4, half_share=0.8)
    with pytest.raises(EngineError, match=r"the graph is 80% half, the engine 25% \(2 of 8 layers\)"):
        require_layers("head.onnx", Layers(all=9, rdsa={0: 4}, floating=8, half=2), rdsa=4, half_share=0.8)
    with pytest.raises(EngineError, match="the graph is 0% half, the engine 12%"):
        require_layers("head.onnx", Layers(all=9, rdsa={0: 4}, floating=8, half=1), rdsa=4, half_share=0.0)


# ---------------------------------------------------------------- cache and interruption


def test_the_key_changes_with_everything_an_engine_is_built_from():
    usual = sidecar(plan_bytes())
    machine, flags = usual.machine, usual.flags
    changes: list[dict[str, Any]] = [
        {"graph_sha256": "9" * 64},
        {"weights_sha256": "9" * 64},
        {"machine": dataclasses.replace(machine, tensorrt="10.4.0")},
        {"machine": dataclasses.replace(machine, sm="9.0")},
        {"machine": dataclasses.replace(machine, driver="1")},
        {"plugin": PluginRecord("1", "9" * 64)},
        {"profiles": usual.profiles[:1]},
        {"flags": dataclasses.replace(flags, level=5)},
    ]
    keys = {engine_key(dataclasses.replace(usual, **change)) for change in changes}
    assert len(keys | {engine_key(usual)}) == len(changes) + 1
    results = dataclasses.replace(usual, plan_sha256="9" * 64, plan_bytes=7, build_s=99.0)
    assert engine_key(results) == engine_key(usual)


def test_timings_are_kept_by_gpu_and_tensorrt(monkeypatch, tmp_path):
    monkeypatch.setenv("SDST_CACHE", str(tmp_path))
    machine = sidecar(plan_bytes()).machine
    assert timing_cache_path(machine) == tmp_path / "timing" / "Mock-GPU-sm8.7-trt10.3.0.cache"


def test_an_interrupt_stops_the_work_and_waits_for_it():
    stop, ended = threading.Event(), threading.Event()

    def work() -> None:
        time.sleep(0.2)  # the main thread waits by now
        os.kill(os.getpid(), signal.SIGINT)
        stop.wait(10)
        time.sleep(0.05)
        ended.set()

    with pytest.raises(KeyboardInterrupt):
        interruptible(work, stop)
    assert stop.is_set()
    assert ended.is_set()


def test_what_the_work_returns_or_raises_comes_out():
    assert interruptible(lambda: 7, threading.Event()) == 7
    with pytest.raises(EngineError, match="no engine"):
        interruptible(lambda: require_layers("x: no engine", Layers(0, {0: 0}, 0, 0), 1, 0), threading.Event())


def test_the_command_needs_no_torch():
    """Engines are built on the device that runs them."""
    code = "import sys; import sdst.build; print('torch' in sys.modules, 'onnx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"], done.stderr


def test_the_command_says_what_is_missing(tmp_path, capsys):
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for name in MODELS:
        (bundle / f"{name}.onnx").write_bytes(b"")
    (bundle / "tokenizer.json").write_text("{}")
    write_manifest(bundle, SPEC, {name: f"{name}.onnx" for name in MODELS}, "0.1.0")
    out = str(tmp_path / "engines")
    assert main(["build", str(bundle), "--out", out, "--profiles", "75x"]) == 2
    assert "profiles: expected CLIPS or CLIPSxROWS" in capsys.readouterr().err
    assert main(["build", str(bundle / "none"), "--out", out]) == 2
    assert "not a bundle" in capsys.readouterr().err
    assert main(["build", str(bundle), "--out", out]) == 2
    assert capsys.readouterr().err.startswith(("error: TensorRT cannot be imported", "error: pycuda"))
    assert not Path(out).exists()
