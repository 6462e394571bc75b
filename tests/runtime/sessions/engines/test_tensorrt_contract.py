"""Every name of TensorRT that this project's source uses exists in the bindings of three versions.

The names are read from the source: `trt.A.B` wherever `trt` is the module, and the attributes of variables that hold
TensorRT's objects, which have one name each throughout (OBJECTS). The real bindings answer, over stubs of the three
libraries that they load. What some version lacks may be named in compat.py only; today nothing is.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mocked_tensorrt import BINDINGS, binding_packages
from places import ROOT, TESTS
from tensorrt_wheels import Wheel

FOLDERS = {"runtime/sdst_runtime/sessions/tensorrt": "*.py", "export/sdst_export/engine": "*.py"}
ALL_SOURCES = [path for folder, pattern in FOLDERS.items() for path in sorted((ROOT / folder).glob(pattern))]
SOURCES = [path for path in ALL_SOURCES if not path.name.startswith("rtx")]  # the others: test_rtx_contract.py
OBJECTS = {  # the names of variables, and the class of what they hold
    "builder": "Builder",
    "config": "IBuilderConfig",
    "context": "IExecutionContext",
    "engine": "ICudaEngine",
    "error": "ParserError",
    "inspector": "EngineInspector",
    "layer": "ILayer",
    "network": "INetworkDefinition",
    "optimization_profile": "IOptimizationProfile",
    "parser": "OnnxParser",
    "plan": "IHostMemory",
    "registry": "IPluginRegistry",
    "runtime": "Runtime",
    "severity": "ILogger.Severity",
    "timing_cache": "ITimingCache",
}
OURS = {  # attributes of our own or Python's things that have one of these names
    "error": {"strerror", "errors"},
    "layer": {"get", "values"},
    "plan": {"name", "parent", "read_bytes", "with_name"},
    "severity": {"name"},
}
SUBCLASSED = {"IProgressMonitor": {"phase_start", "step_complete", "phase_finish"}, "ILogger": {"log"}}
STUBS = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
SYMBOLS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getBuilderPluginRegistry",
    "getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins",
)  # fmt: skip


def dotted(node: ast.AST) -> list[str]:
    """["trt", "A", "B"] of the expression trt.A.B, with `self.` in front left out; empty for others."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return []
    return names if node.id == "self" else [node.id, *names]


def used_names(source: str, objects: dict[str, str] = OBJECTS) -> set[str]:
    """What a file uses of TensorRT, as names in the module: "Runtime", "ICudaEngine.num_io_tensors"."""
    found: set[str] = set()
    for names in _attributes(source):
        if names[0] == "trt":
            found.add(".".join(names[1:]))
        elif names[0] in objects and names[1] not in OURS.get(names[0], ()):
            found.add(f"{objects[names[0]]}.{names[1]}")
    return found


def _attributes(source: str) -> Iterator[list[str]]:
    """Every a.b.c of a file; of self.parts.engine.x and the like, what follows the owner."""
    for node in ast.walk(ast.parse(source)):
        names = dotted(node) if isinstance(node, ast.Attribute) else []
        names = names[1:] if names[:1] in (["parts"], ["bucket"]) else names
        if len(names) > 1:
            yield names


def all_names() -> set[str]:
    found = {name for path in SOURCES for name in used_names(path.read_text(encoding="utf-8"))}
    return found | {f"{base}.{method}" for base, methods in SUBCLASSED.items() for method in methods}


def in_process_missing(names: str) -> dict[str, Any]:
    """Those of the names (JSON) that the bindings lack."""
    trt: Any = importlib.import_module("tensorrt")

    def exists(name: str) -> bool:
        value = trt
        for part in name.split("."):
            if not hasattr(value, part):
                return False
            value = getattr(value, part)
        return True

    return {"version": trt.__version__, "missing": [name for name in json.loads(names) if not exists(name)]}


@pytest.fixture(scope="module")
def stubs(tmp_path_factory) -> Path:
    """Libraries with nothing but the symbols that the bindings look for, for both majors."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler, cc")
    folder = tmp_path_factory.mktemp("stubs")
    source = "\n".join(f"void {name}(void) {{}}" for name in SYMBOLS)
    (folder / "stubs.c").write_text(source)
    for name in STUBS:
        for major in (10, 11):
            library = f"lib{name}.so.{major}"
            command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", library, "stubs.c"]
            subprocess.run(command, check=True, cwd=folder)
    return folder


def ask(bindings: Wheel, stubs: Path, names: set[str]) -> dict[str, Any]:
    """`in_process_missing` in a fresh process with these bindings."""
    code = (
        "import json, sys; sys.modules['tensorrt_libs'] = None; from test_tensorrt_contract import in_process_missing;"
        "print(json.dumps(in_process_missing(sys.argv[1])))"
    )
    paths = [str(binding_packages(bindings)), str(Path(__file__).parent), str(TESTS), os.environ.get("PYTHONPATH", "")]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, paths)), LD_LIBRARY_PATH=str(stubs))
    command = [sys.executable, "-c", code, json.dumps(sorted(names))]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.parametrize("bindings", BINDINGS, ids=str)
def test_every_name_exists_in_every_version(bindings, stubs):
    said = ask(bindings, stubs, all_names())
    assert said == {"version": bindings.version, "missing": []}


@pytest.mark.parametrize("bindings", BINDINGS, ids=str)
def test_a_name_that_is_not_there_is_found(bindings, stubs):
    gone = {"BuilderFlag.FP16", "IPluginRegistry.get_plugin_creator", "ICudaEngine.get_binding_name"}
    missing = {"10": {"ICudaEngine.get_binding_name"}, "11": gone}[bindings.version.split(".")[0]]
    assert set(ask(bindings, stubs, gone | all_names())["missing"]) == missing


def test_the_names_are_read_from_the_source():
    names = all_names()
    assert {
        "Runtime", "Builder", "OnnxParser", "ExecutionContextAllocationStrategy.USER_MANAGED", "TensorIOMode.INPUT",
        "IExecutionContext.execute_async_v3", "ICudaEngine.get_tensor_profile_shape", "IBuilderConfig.progress_monitor",
        "Builder.build_serialized_network", "IPluginRegistry.load_library", "EngineInspector.get_engine_information",
        "Runtime.engine_host_code_allowed", "IOptimizationProfile.set_shape", "ITimingCache.serialize",
        "ParserError.desc", "INetworkDefinition.get_layer", "ILayer.type",
    } <= names  # fmt: skip


def test_every_variable_of_the_table_is_in_the_source():
    """One that no file uses any more would check nothing."""
    used = {names[0] for path in SOURCES for names in _attributes(path.read_text(encoding="utf-8"))}
    assert OBJECTS.keys() <= used


PLANTED = {
    "trt.BuilderFlag.FP16": "BuilderFlag.FP16",
    "self.trt.BuilderFlag.FP16": "BuilderFlag.FP16",
    "self.engine.get_binding_name(0)": "ICudaEngine.get_binding_name",
    "self.parts.engine.x": "ICudaEngine.x",
    "bucket.context.y(1)": "IExecutionContext.y",
}


@pytest.mark.parametrize("planted", PLANTED)
def test_the_reader_sees_a_planted_name(planted):
    assert PLANTED[planted] in used_names(planted)


def test_no_file_but_compat_asks_what_a_version_has():
    """A version-dependent branch elsewhere would be a difference that compat.py does not hold."""
    found: list[str] = []
    for path in SOURCES:
        if path.name != "compat.py":
            found += [f"{path.name}: {name}" for name in _version_questions(path.read_text(encoding="utf-8"))]
    assert found == []


def _version_questions(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            first = node.args[0]
            if isinstance(first, ast.Name) and first.id in (*OBJECTS, "trt"):
                yield ast.unparse(node)
