"""Engines for RTX by the real parser and builder of TensorRT for RTX, which need no GPU.

Most tests build a head of two sdst::RDSA nodes whose function is an identity (engine_models.py), in half a second. What
may end the process, and what registers a plugin, runs in a fresh one: functions named `in_process_`.
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from engine_files import message
from engine_models import head_model, write_head
from host_device import HostDevice
from onnx import TensorProto, helper, save
from places import TESTS
from rich.console import Console
from rich.progress import Progress

from sdst.cli import main
from sdst_export.engine import rtx_build
from sdst_export.engine.build import build_engine
from sdst_export.engine.onnx_source import expanded_half_share, read_graph
from sdst_export.engine.options import EngineOptions
from sdst_export.engine.profiles import Bucket
from sdst_runtime.doctor.gpu import check_rtx
from sdst_runtime.errors import ContractError, InputError, SdstError
from sdst_runtime.grounding.bundle import MODELS, Bundle
from sdst_runtime.sessions.base import GROUNDER_MODELS
from sdst_runtime.sessions.tensorrt import RtxSession
from sdst_runtime.sessions.tensorrt.compat import shared_logger
from sdst_runtime.sessions.tensorrt.device import DeviceFacts
from sdst_runtime.sessions.tensorrt.rtx import reads_header
from sdst_runtime.sessions.tensorrt.sidecar import EngineFlags, ShapeRange, read_sidecar, sidecar_path

trt: Any = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX: pip install '.[rtx]' on Linux x86-64")

BUCKETS = (Bucket(8, 2), Bucket(24, 4))
RTX = EngineOptions(target="rtx")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("SDST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def build(path: Path, out: Path, options: EngineOptions = RTX) -> Any:
    return build_engine(path, out, BUCKETS, options, None, Progress(console=Console(quiet=True)))


def engines_of(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.suffix in (".plan", ".tmp")]


# ---------------------------------------------------------------- what is built


def test_an_engine_for_three_gpus_and_its_sidecar(tmp_path, cache):
    path, out = write_head(tmp_path / "head.onnx"), tmp_path / "engines" / "head.plan"
    built = build(path, out, EngineOptions(target="rtx", compute=("12.0", "8.6", "8.9", "8.6")))
    assert built == read_sidecar(out)
    assert (built.target, built.compute, built.plugin) == ("rtx", ("8.6", "8.9", "12.0"), None)
    assert (built.machine.tensorrt, built.machine.sm, built.machine.gpu) == (trt.__version__, "", "")
    assert built.layers == 2
    assert built.flags == EngineFlags(None, 3, False, False, False)
    data = out.read_bytes()
    assert (built.plan_bytes, built.plan_sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert data[:4] == b"vtrt"
    assert [profile["value"].max for profile in built.profiles] == [(2, 8, 32), (4, 24, 32)]  # one a bucket
    assert [profile["value"].min for profile in built.profiles] == [(1, 1, 32)] * 2
    again = build(path, tmp_path / "again" / "head.plan")  # the three are the usual ones
    assert again == built
    other = build(path, tmp_path / "other" / "head.plan", EngineOptions(target="rtx", compute=("8.9",)))
    assert (other.compute, other.plan_sha256 == built.plan_sha256) == (("8.9",), False)
    assert len(list((cache / "engines").iterdir())) == 2


def test_a_bundle_by_the_command(exported, tmp_path, capsys, caplog):
    """All models of a random bundle; sdst::RDSA is its function body there. Nothing is warned of."""
    out = tmp_path / "rtx"
    command = ["build", str(exported.directory), "--target", "rtx", "--compute", "8.9", "8.6", "--out", str(out)]
    assert main([*command, "--profiles", "16x1"]) == 0
    told = capsys.readouterr()
    assert told.out.strip() == str(out)
    lines = [line for line in told.err.splitlines() if not line.startswith(("building ", "  ", "next: "))]
    assert (told.err.count("MiB of "), lines) == (len(MODELS), [])
    bundle = Bundle.open(out)
    for name in MODELS:
        sidecar = read_sidecar(bundle.path(name))
        assert (sidecar.kind, sidecar.target, sidecar.compute) == (name, "rtx", ("8.6", "8.9"))
        assert (len(sidecar.profiles), sidecar.layers > 30) == (1, True)
    assert not list(out.glob("*.so"))
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("name", MODELS)
def test_the_network_keeps_the_graphs_share_of_half(exported_fp16, name):
    """The share is of the network, which TensorRT fuses afterwards, so it is nearly the graph's, bodies expanded."""
    graph = read_graph(exported_fp16 / f"{name}.onnx")
    builder = trt.Builder(shared_logger(trt))
    half, floating = rtx_build.half_layers(rtx_build.RtxBuild(trt, graph, ("8.9",)).parsed(builder))
    expanded = expanded_half_share(graph.path)
    assert expanded > 0.2
    assert abs(half / floating - expanded) < 0.08


# ---------------------------------------------------------------- what is refused


def test_options_of_tensorrt_and_unknown_capabilities_are_refused(tmp_path):
    path, out = tmp_path / "absent.onnx", tmp_path / "head.plan"
    for name, value in (
        ("workspace_mib", 64), ("level", 5), ("timing_cache", tmp_path), ("version_compatible", True),
        ("hardware_compatible", True), ("embed_plugin", True),
    ):  # fmt: skip
        with pytest.raises(InputError, match=r"TensorRT for RTX has no such option; leave it"):
            build(path, out, dataclasses.replace(RTX, **{name: value}))
    for unknown in ("9.0", "8.7", "sm89", "", "current"):
        with pytest.raises(InputError, match=r"expected some of 7\.5 8\.0 8\.6 8\.9 12\.0 12\.1, got '"):
            build(path, out, EngineOptions(target="rtx", compute=("8.6", unknown)))
    with pytest.raises(InputError, match=r"compute: TensorRT builds for the GPU that is here"):
        build(path, out, EngineOptions(compute=("8.6",)))


def test_the_command_refuses_before_it_writes(exported, tmp_path, capsys):
    out = tmp_path / "rtx"
    command = ["build", str(exported.directory), "--out", str(out)]
    for more, words in (
        (["--target", "rtx", "--compute", "9.0"], "error: compute: expected some of 7.5"),
        (["--target", "rtx", "--embed-plugin"], "error: embed plugin: TensorRT for RTX has no such option"),
        (["--compute", "8.6"], "error: "),  # TensorRT is not here, else: compute is for rtx only
    ):
        assert main([*command, *more]) == 2
        assert capsys.readouterr().err.startswith(words)
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith(("error: TensorRT cannot be imported", "error: pycuda"))
    assert "--target rtx" in error
    assert not out.exists()


def damaged_model(kind: str) -> Any:
    model = head_model()
    body = model.functions[0].node[0]
    if kind == "op":
        body.op_type = "Telepathy"
    if kind == "types":  # a product of float and int32
        body.op_type = "MatMul"
        body.input.append("length")
    if kind == "half":  # a graph that says float16 and computes in float32
        hidden = helper.make_node("Cast", ["value"], ["halves"], to=TensorProto.FLOAT16)
        half = [helper.make_node("Neg", ["halves"], ["h0"]), helper.make_node("Abs", ["h0"], ["h1"])]
        back = helper.make_node("Cast", ["h1"], ["singles"], to=TensorProto.FLOAT)
        del model.graph.node[:]
        model.graph.node.extend([hidden, *half, back, helper.make_node("Identity", ["singles"], ["out"])])
    return model


BROKEN = {  # what the parser says, and of which node
    "op": ("Plugin not found", "(node 0, Telepathy)"),
    "types": ("second input has type Int32 but must have type Float", "(node 0, MatMul)"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_graphs_are_refused_with_the_parsers_words(tmp_path, kind):
    save(damaged_model(kind), str(tmp_path / "head.onnx"))
    said = message(lambda: build(tmp_path / "head.onnx", tmp_path / "out" / "head.plan"))
    assert said.startswith("EngineError: head.onnx: TensorRT for RTX cannot read it: ")
    assert all(words in said for words in BROKEN[kind]), said
    assert "CUDA driver" not in said  # which the library logs beside every error where there is none
    assert engines_of(tmp_path) == []


def test_a_profile_outside_the_graph_is_refused(tmp_path):
    """Seeded faults: seven moments where the graph has five, and a least shape above the usual one."""
    good = build(write_head(tmp_path / "head.onnx"), tmp_path / "good" / "head.plan")
    one = rtx_build.RtxBuild(trt, read_graph(tmp_path / "head.onnx"), ("8.9",))
    for fault in (ShapeRange((1, 7, 2), (2, 7, 2), (2, 7, 2)), ShapeRange((3, 5, 2), (2, 5, 2), (2, 5, 2))):
        said = message(lambda fault=fault: one.run([good.profiles[0] | {"reference": fault}], None))
        assert said.startswith("EngineError: head.onnx: TensorRT for RTX "), said
        assert "reference" in said


def test_a_network_of_other_types_is_refused(tmp_path, monkeypatch):
    """Seeded faults: what the check of the network holds against the graph is not what the graph says."""
    save(damaged_model("half"), str(tmp_path / "head.onnx"))
    graph = read_graph(tmp_path / "head.onnx")
    assert build(tmp_path / "head.onnx", tmp_path / "good" / "head.plan").layers > 3
    profiles: Any = read_sidecar(tmp_path / "good" / "head.plan").profiles

    def fails(**changes: Any) -> str:
        changed = dataclasses.replace(graph, **changes)
        return message(lambda: rtx_build.RtxBuild(trt, changed, ("8.9",)).run(profiles, None))

    said = fails(outputs={"out": dataclasses.replace(graph.outputs["out"], dtype="float16")})
    assert "output out: the graph has float16 [B, 5, 32], the network of TensorRT for RTX float32" in said
    said = fails(inputs={**graph.inputs, "query": graph.inputs["length"]})
    assert "input query: the graph has int32 [B], the network of TensorRT for RTX None" in said
    said = fails(inputs={**graph.inputs, "value": dataclasses.replace(graph.inputs["value"], shape=("B", "T", 64))})
    assert "input value: the graph has float32 [B, T, 64]" in said
    monkeypatch.setattr(rtx_build, "half_layers", lambda network: (1, 9))
    assert "half, the network 11% (1 of 9 layers); export the bundle again" in fails()


def in_process_registered(directory: str) -> str:
    """A plugin of the name of our op, registered by somebody else in this process."""

    class Creator(trt.IPluginCreatorV3One):
        def __init__(self) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_version, self.plugin_namespace = "RDSA", "1", "sdst"
            self.field_names = trt.PluginFieldCollection([])

    creator = Creator()
    assert trt.get_plugin_registry().register_creator(creator, "sdst")
    return message(lambda: build(Path(directory) / "head.onnx", Path(directory) / "head.plan"))


def in_fresh_process(function: Any, argument: str) -> Any:
    code = "import json, sys, test_rtx_build; print(json.dumps(getattr(test_rtx_build, sys.argv[1])(sys.argv[2])))"
    paths = os.pathsep.join([str(Path(__file__).parent), str(TESTS)])
    command = [sys.executable, "-c", code, function.__name__, argument]
    process = subprocess.run(command, env=dict(os.environ, PYTHONPATH=paths), capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def test_a_registered_plugin_is_refused_before_the_parser_meets_it(tmp_path):
    write_head(tmp_path / "head.onnx")
    said = in_fresh_process(in_process_registered, str(tmp_path))
    assert said.startswith("ContractError: head.onnx: a plugin for RDSA is registered with TensorRT for RTX")
    assert engines_of(tmp_path) == []


# ---------------------------------------------------------------- Ctrl-C, a full disk


INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from sdst.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_ends_the_real_builder_and_leaves_nothing_half_written(exported, tmp_path, cache):
    out = tmp_path / "rtx"
    command = [sys.executable, "-c", INTERRUPTED, "build", str(exported.directory), "--target", "rtx", "--out"]
    process = subprocess.Popen([*command, str(out), "--profiles", "16x1"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    before = ""
    while "building head.plan" not in before:
        before = process.stderr.readline()
        assert before, "ended before the head"
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read().splitlines()
    assert process.wait(120) == 130
    assert rest[-1] == "interrupted"
    others = sorted(f"{name}.plan{suffix}" for name in GROUNDER_MODELS if name != "head" for suffix in ("", ".json"))
    assert sorted(path.name for path in out.iterdir()) == others
    assert len(list(cache.rglob("*.plan"))) == 3
    with pytest.raises(SdstError, match=r"not a bundle"):
        Bundle.open(out)


def test_no_room_on_the_disk_is_one_line(tmp_path):
    path = write_head(tmp_path / "head.onnx")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # bytes of a file; the plan has 300,000
    try:
        said = message(lambda: build(path, tmp_path / "out" / "head.plan"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert said.startswith(f"InputError: cannot write {tmp_path}/out/head.plan")
    assert engines_of(tmp_path) == []


# ---------------------------------------------------------------- what the real library says without a GPU


def test_a_session_without_a_driver_tells_the_librarys_own_reason(tmp_path):
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pass
    else:
        pytest.skip("needs a machine without an NVIDIA driver")
    plan, device = tmp_path / "head.plan", HostDevice()
    build(write_head(tmp_path / "head.onnx"), plan)
    device.facts = DeviceFacts("RTX 4090", "8.9", "580.1", "13.0")
    said = message(lambda: RtxSession(plan, device=device))
    assert said.startswith(f"ContractError: {plan}: TensorRT for RTX says that the engine is not valid here: ")
    assert "CUDA driver version is insufficient" in said


def test_a_header_that_is_not_of_an_engine_is_known_without_a_gpu(tmp_path):
    plan = tmp_path / "head.plan"
    build(write_head(tmp_path / "head.onnx"), plan)
    runtime = trt.Runtime(shared_logger(trt))
    assert reads_header(trt, runtime, plan.read_bytes())
    assert not reads_header(trt, runtime, b"\x00" + plan.read_bytes()[1:])


def test_old_sidecars_are_read_and_the_doctor_knows_the_library(tmp_path):
    plan = tmp_path / "head.plan"
    build(write_head(tmp_path / "head.onnx"), plan)
    content = json.loads(sidecar_path(plan).read_text())
    for name in ("target", "compute", "layers"):
        del content[name]
    sidecar_path(plan).write_text(json.dumps(content))
    old = read_sidecar(plan)
    assert (old.target, old.compute, old.layers) == ("tensorrt", (), 0)
    with pytest.raises(ContractError, match="expected an engine of TensorRT for RTX, it is one of TensorRT;"):
        RtxSession(plan, device=HostDevice())
    check = check_rtx()
    assert (check.state, check.needed) == ("fine", False)
    assert check.found == f"{trt.__version__}, builds for 7.5 8.0 8.6 8.9 12.0 12.1"
