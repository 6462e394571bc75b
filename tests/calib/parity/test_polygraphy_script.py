"""Polygraphy without us: the written script, and every command of docs/polygraphy.md that needs no GPU."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from engine_models import mock_text, write_head
from mocked_tensorrt import BINDINGS, MockedTensorRT, building_tensorrt
from parity_world import changed_bundle, plant
from places import ROOT
from polygraphy.backend.trt import TrtRunner
from polygraphy.json import load_json

from sdst_calib.parity.polygraphy_script import ScriptedBundle, write_polygraphy_script
from sdst_runtime.errors import InputError
from sdst_runtime.grounding.bundle import Bundle
from sdst_runtime.sessions.base import GROUNDING_MODELS, Session

DOCS = ROOT / "docs" / "polygraphy.md"
ONLY = """
import importlib.metadata, runpy, sys
owners = importlib.metadata.packages_distributions()
class Blocked:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        ours = top.startswith("sdst")
        if ours or top in owners and not {"polygraphy", "onnxruntime", "numpy"} & set(owners[top]):
            raise ModuleNotFoundError(f"{top} is blocked", name=top)
sys.meta_path.insert(0, Blocked())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def inputs(seed: int, T: int = 9, L: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "video": rng.normal(size=(1, T, 2, 12)).astype(np.float32),
        "video_mask": np.ones((1, T), bool),
        "text": rng.normal(size=(1, 2, L, 16)).astype(np.float32),
        "text_mask": np.ones((1, L), bool),
    }


def graphs(bundle: Path) -> dict[str, Path]:
    return {graph: bundle / f"{graph}.onnx" for graph in GROUNDING_MODELS}


def run_alone(script: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", ONLY, str(script)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/", timeout=300)


def test_the_script_needs_polygraphy_onnxruntime_and_numpy_only(exported, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(exported.directory, bundle)
    broken = changed_bundle(bundle, tmp_path / "broken", lambda graph: plant(graph, "classify", 2.0))
    script = tmp_path / "again" / "check.py"
    scripted = [ScriptedBundle("good", graphs(bundle), 1e-5), ScriptedBundle("bad", graphs(broken), 1e-5)]
    with Bundle.open(bundle).grounding_model(1) as reference:
        write_polygraphy_script(script, reference, scripted[:1], [inputs(0), inputs(1, 12, 4)])
        done = run_alone(script)
        assert done.returncode == 0, done.stderr
        assert re.search(r"^good: spans \S+ scores \S+ saliency \S+ \(limit 1e-05\)$", done.stdout, re.MULTILINE)
        write_polygraphy_script(script, reference, scripted, [inputs(0), inputs(1, 12, 4)])
        expected = reference.run(inputs(0))["scores"]
    moved = tmp_path.with_name(tmp_path.name + "-moved")  # the tree travels as a whole
    shutil.move(tmp_path, moved)
    done = run_alone(moved / "again" / "check.py")
    assert done.returncode == 1, done.stderr
    assert "beyond the limit: bad: scores" in done.stdout
    assert "beyond the limit: good" not in done.stdout
    saved = load_json(str(moved / "again" / "check.reference.json"))
    np.testing.assert_array_equal(saved["reference"][0]["scores"], expected)


class Altered:
    """A session that answers something else as well."""

    def __init__(self, session: Session) -> None:
        self.session, self.inputs, self.outputs = session, session.inputs, session.outputs
        self.metadata = session.metadata

    def run(self, inputs):
        answer = dict(self.session.run(inputs))
        answer["spans"] = np.full_like(answer["spans"], np.nan)
        return {**answer, "scores": answer["scores"][:, :-1], "more": answer["scores"]}

    def close(self) -> None: ...

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None: ...


def test_outputs_that_polygraphy_leaves_uncompared_are_beyond_the_limit(exported, tmp_path):
    script = tmp_path / "check.py"
    with Bundle.open(exported.directory).grounding_model(1) as reference:
        scripted = [ScriptedBundle("x", graphs(exported.directory), 1e-5)]
        write_polygraphy_script(script, Altered(reference), scripted, [inputs(0)])
    done = run_alone(script)
    assert done.returncode == 1, done.stderr
    assert re.search(r"^x: spans nan scores inf saliency \S+ more inf \(limit 1e-05\)$", done.stdout, re.MULTILINE)
    assert re.findall(r"^beyond the limit: x: (\S+)$", done.stdout, re.MULTILINE) == ["more", "scores", "spans"]


def test_the_script_runs_onnx_graphs_only(exported, tmp_path):
    plan = {**graphs(exported.directory), "head": tmp_path / "head.plan"}
    with (
        Bundle.open(exported.directory).grounding_model(1) as reference,
        pytest.raises(InputError, match=r"head\.plan: expected a file of ONNX graphs; give the bundle"),
    ):
        write_polygraphy_script(tmp_path / "check.py", reference, [ScriptedBundle("x", plan, 1.0)], [inputs(0)])
    assert not list(tmp_path.iterdir())


def test_a_name_with_quotes_and_braces_is_a_script_too(exported, tmp_path):
    script = tmp_path / """it's "a" {x}.v2.py"""
    with Bundle.open(exported.directory).grounding_model(1) as reference:
        bundle = ScriptedBundle('it\'s "a" {y}', graphs(exported.directory), 1e-5)
        write_polygraphy_script(script, reference, [bundle], [inputs(0)])
    done = run_alone(script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('it\'s "a" {y}: spans ')
    names = ["inputs.json", "py", "reference.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{script.stem}.{name}" for name in names]


@pytest.mark.parametrize(("name", "got"), [("check", "''"), ("check.json", "'.json'"), ("folder.py", "a directory")])
def test_what_is_no_name_of_a_script_is_refused(exported, tmp_path, name, got):
    (tmp_path / "folder.py").mkdir()
    with (
        Bundle.open(exported.directory).grounding_model(1) as reference,
        pytest.raises(InputError, match=f"ends in .py, got .*{re.escape(got)}"),
    ):
        write_polygraphy_script(tmp_path / name, reference, [], [inputs(0)])
    assert [path.name for path in tmp_path.iterdir()] == ["folder.py"]


def test_no_script_without_its_inputs(exported, tmp_path):
    (tmp_path / "check.inputs.json").mkdir()
    bundle = ScriptedBundle("x", graphs(exported.directory), 1.0)
    with (
        Bundle.open(exported.directory).grounding_model(1) as reference,
        pytest.raises(InputError, match="cannot write"),
    ):
        write_polygraphy_script(tmp_path / "check.py", reference, [bundle], [inputs(0)])
    assert [path.name for path in tmp_path.iterdir()] == ["check.inputs.json"]


def blocks(language: str) -> list[str]:
    """Blocks of the page; those marked text need a GPU."""
    return re.findall(rf"^```{language}\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)


def commands(language: str) -> list[str]:
    lines = (line for block in blocks(language) for line in block.replace("\\\n", " ").splitlines())
    return [line for line in lines if line.strip()]


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def run(command: str, folder: Path, **variables: str) -> str:
    """What a command prints. Fails the test when it fails."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"} | variables
    done = subprocess.run(
        ["bash", "-ec", command], cwd=folder, capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def test_polygraphy_on_tensorrt_for_rtx(exported, tmp_path):
    """The commands of the docs by the real parser and builder."""
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX: pip install '.[rtx]' on Linux x86-64")
    for name in ("projection.onnx", "head.onnx"):
        shutil.copy(exported.directory / name, tmp_path)
    run(next(line for line in commands("sh") if "--save-inputs inputs.json" in line), tmp_path)
    told = [run(command, tmp_path, POLYGRAPHY_USE_TENSORRT_RTX="1") for command in commands("rtx")]
    assert "projected [dtype=float32, shape=('B', 'T', 2, 32)]" in told[0]
    assert all((tmp_path / f"{name}.engine").read_bytes()[:4] == b"vtrt" for name in ("projection", "head"))
    assert "PASSED" in told[-1]


def test_every_command_of_the_docs_runs(exported, tmp_path):
    """In the order of the page, in one folder: each may use what the ones before it wrote."""
    for name in ("projection.onnx", "head.onnx"):
        shutil.copy(exported.directory / name, tmp_path)
    (tmp_path / "load_head.py").write_text(blocks("python")[0])
    found = commands("sh")
    for command in found:
        run(command, tmp_path)
    used = {tuple(shlex.split(command)[:2]) for command in found}
    tools = ("run", "inspect", "surgeon", "debug")
    assert used >= {("polygraphy", tool) for tool in tools}
    assert operators(tmp_path / "reduced.onnx") == ["LayerNormalization"]
    assert {"MatMul", "LayerNormalization"} <= set(operators(tmp_path / "text_projection.onnx"))
    assert [function.name for function in onnx.load(tmp_path / "clean.onnx").functions] == ["RDSA"]
    stripped = onnx.load(tmp_path / "head-plugin.onnx")
    assert (len(stripped.functions), operators(tmp_path / "head-plugin.onnx").count("RDSA")) == (0, 2)
    assert (tmp_path / "ones16.bin").read_bytes() == bytes([1] * 16)
    assert "InvokeFromScript(" in (tmp_path / "on_gpu.py").read_text()


# ---------------------------------------------------------------- with TensorRT


@pytest.fixture(params=BINDINGS, ids=str)
def tensorrt(request) -> MockedTensorRT:
    return building_tensorrt(request.param)


def in_process_load_network(directory: str) -> list[str]:
    os.chdir(directory)
    write_head(Path("head.onnx"), text=mock_text())
    script = blocks("python")[0].replace("build/libsdst_plugins.so", os.environ["SDST_PLUGINS"])
    Path("load_head.py").write_text(script)
    _builder, network, _parser = runpy.run_path("load_head.py")["load_network"]()
    return [str(network.get_layer(index).type) for index in range(network.num_layers)]


def test_the_network_script_of_the_docs_gives_plugin_layers(tensorrt: MockedTensorRT, tmp_path):
    assert tensorrt.call(in_process_load_network, str(tmp_path)) == ["LayerType.PLUGIN_V3"] * 2


def test_the_runner_of_the_docs_is_made_without_tensorrt():
    made: dict[str, Any] = {}
    exec(blocks("python")[1], made)
    assert isinstance(made["runner"], TrtRunner)
